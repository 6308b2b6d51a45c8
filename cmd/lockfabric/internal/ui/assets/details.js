// The details of one name, and the way to take it away.
import { $, age, el, length, plural, process, show } from './text.js';

const calm = 300; // ms between two looks at the same name
const again = 5000; // ms until leases are looked up again

export class Details {
  // page has {now(), release, refused()}: the server's clock, whether locks may be taken away,
  // and what to do when the session has ended.
  constructor(page, closed) {
    this.page = page;
    this.key = null;
    this.info = null;
    this.closed = closed;
    $('close').addEventListener('click', () => this.close());
    $('release-cancel').addEventListener('click', () => $('release').close());
    $('release-do').addEventListener('click', () => this.release());
    $('release').addEventListener('close', () => this.focus());
    setInterval(() => { if (this.info) this.ages(); }, 1000);
    setInterval(() => { if (this.key !== null) this.look(); }, again);
  }

  open(key) {
    if (this.key !== key) {
      this.info = null;
      $('details-body').replaceChildren(el('p', { class: 'quiet' }, 'Looking…'));
    }
    this.key = key;
    $('details-name').textContent = show(key);
    $('details').hidden = false;
    document.body.classList.add('detailed');
    $('details-name').focus();
    this.look();
  }

  close() {
    if (this.key === null) return;
    this.key = this.info = null;
    $('details').hidden = true;
    document.body.classList.remove('detailed');
    this.closed();
  }

  focus() { if (this.key !== null) $('details-name').focus(); }

  // look asks for the newest state, once for several changes that come together.
  look() {
    if (this.asking) {
      this.stale = true;
      return;
    }
    this.asking = this.ask().finally(() => setTimeout(() => {
      this.asking = null;
      if (this.stale) {
        this.stale = false;
        this.look();
      }
    }, calm));
  }

  async ask() {
    const key = this.key;
    if (key === null) return;
    let answer, body;
    try {
      answer = await fetch('api/key?name=' + encodeURIComponent(key));
      body = await answer.json();
    } catch {
      return; // the stream tells that nobody answers
    }
    if (answer.status === 401) return this.page.refused();
    if (this.key !== key) {
      this.stale = true;
      return;
    }
    if (!answer.ok) {
      this.info = null;
      $('details-body').replaceChildren(el('p', { class: 'error' }, show(body.error)));
      return;
    }
    if (this.info && this.info.revision > body.revision && body.revision > 0) return; // a late answer
    this.info = body;
    this.draw();
  }

  draw() {
    const i = this.info, body = $('details-body');
    const focused = body.contains(document.activeElement) ? document.activeElement.dataset.id : undefined;
    const parts = [facts(i)];
    if (i.held) parts.push(this.parties('Holders', i.holders, i.held, true));
    if (i.waiting) parts.push(this.parties('Waiting', i.waiters, i.waiting, false));
    for (const c of i.conditions || []) parts.push(this.parties('Waiting for ' + show(c.name), c.waiters || [], (c.waiters || []).length, false));
    if (!i.held && !i.waiting && !(i.conditions || []).length) parts.push(el('p', { class: 'quiet' }, i.kind ? 'Nobody holds it or waits.' : 'Not in use.'));
    body.replaceChildren(...parts);
    this.ages();
    if (focused !== undefined) ([...body.querySelectorAll('[data-id]')].find(b => b.dataset.id === focused) || $('details-name')).focus();
  }

  parties(title, list, all, holds) {
    const head = el('div', { class: 'bar' }, el('h3', {}, title + (all > 1 ? ' (' + all + ')' : '')));
    if (holds && this.page.release && list.length > 1) head.append(this.button('Take from all…', 'all', list));
    const items = list.map((p, n) => el('li', { class: 'party' }, ...this.party(p, n, holds)));
    if (all > list.length) items.push(el('li', { class: 'quiet' }, 'and ' + (all - list.length) + ' more'));
    return el('section', {}, head, el('ol', {}, ...items));
  }

  party(p, n, holds) {
    const who = process(p.lease) || (p.owner !== p.id ? p.owner : p.id);
    const top = el('div', { class: 'bar' },
      el('strong', {}, holds ? '' : n + 1 + '. ', el('bdi', {}, show(who))), badge(p.lease.state), p.revoked && el('span', { class: 'badge warn' }, 'told to let go'));
    if (holds && this.page.release) top.append(this.button('Take away…', p.id, [p]));
    const [list, add] = pairs();
    add('mode', p.mode && p.mode + (p.converting ? ' → ' + p.converting : ''));
    add('permits', p.permits && p.permits + (p.refused ? ' (more than there are)' : ''));
    add('generation', p.generation);
    add('state', p.leaving && 'leaving');
    add('after', p.signalled && show(p.signalled));
    add('token', p.token);
    add('queued at', p.queued);
    add(holds ? 'for' : 'waits for', el('time', { 'data-since': Date.parse(p.since), title: p.since }));
    add('expected wait', p.expected_wait_ns && length(p.expected_wait_ns));
    add('owner', p.owner !== p.id && show(p.owner));
    add('id', show(p.id));
    add('lease', 'TTL ' + length(p.lease.ttl_ns) + (p.lease.renewed ? ', renewed ' : ''));
    if (p.lease.renewed) list.lastChild.append(el('time', { 'data-since': Date.parse(p.lease.renewed) }), ' ago');
    for (const [name, value] of Object.entries(p.metadata || {})) add(el('bdi', { class: 'meta' }, show(name)), el('bdi', {}, show(value)));
    add('value', valueOf(p));
    return [top, list];
  }

  button(text, id, holders) {
    const b = el('button', { type: 'button', class: 'danger', 'data-id': id }, text);
    b.addEventListener('click', () => this.confirm(holders));
    return b;
  }

  ages() {
    for (const t of $('details-body').querySelectorAll('[data-since]')) t.textContent = age(+t.dataset.since, this.page.now());
  }

  confirm(holders) {
    this.taking = { key: this.key, holders: holders.map(p => p.id) };
    $('release-key').textContent = show(this.key);
    $('release-holders').replaceChildren(...holders.map(p => el('li', {}, show(process(p.lease) || p.owner), p.token ? ', token ' + p.token : '')));
    $('release-now').checked = false;
    $('release-error').textContent = '';
    $('release-do').disabled = false;
    $('release').showModal();
    $('release-cancel').focus();
  }

  async release() {
    $('release-do').disabled = true;
    let text = 'no answer';
    try {
      const answer = await fetch('api/release', {
        method: 'POST', headers: { 'Content-Type': 'application/json' },
        body: JSON.stringify({ ...this.taking, now: $('release-now').checked }),
      });
      if (answer.status === 401) this.page.refused();
      const body = await answer.json();
      if (answer.ok) {
        $('release').close();
        this.look();
        return;
      }
      text = show(body.error);
    } catch { /* text says it */ }
    $('release-error').textContent = text;
    $('release-do').disabled = false;
  }
}

// pairs is a list of names and values, and what adds to it what there is.
function pairs() {
  const list = el('dl');
  return [list, (name, value) => { if (value || value === 0) list.append(el('dt', {}, name), el('dd', {}, value)); }];
}

const badge = state => {
  const names = { live: ['live', 'good'], stale: ['looks dead', 'bad'], dead: ['dead', 'bad'], missing: ['lease is gone', 'bad'] };
  const [text, look] = names[state] || ['not known', ''];
  return el('span', { class: 'badge ' + look }, text);
};

function valueOf(x) {
  if (x.value !== undefined) return el('bdi', {}, show(x.value));
  return x.data && x.data + ' (base64)';
}

function facts(i) {
  const [list, add] = pairs();
  add('kind', i.kind);
  add('state', i.state);
  add('revision', i.revision || '');
  add('a hold lasts', i.hold_time_ns && length(i.hold_time_ns));
  if (i.kind === 'latch' || i.initial !== i.size) add('made with', i.initial);
  add('generation', i.generation);
  add('value', valueOf(i));
  for (const e of (i.ended || []).slice(-5)) {
    add('generation ' + e.generation, (e.broken ? 'broken: ' + show(e.why) + (e.who ? ' by ' + show(e.who) : '') : 'passed') + ', ' + plural((e.ids || []).length, 'arrived', 'arrived'));
  }
  return list;
}
