// Who waits for whom: a line for each unit of work, and arrows beside them.
import { $, el, plural, process, show } from './text.js';

const every = 1000; // ms between two looks, while it is shown

export class Waits {
  // page has {refused()}; open(key) shows a name.
  constructor(page, open) {
    this.page = page;
    this.open = open;
    this.shown = false;
    this.edges = [];
    setInterval(() => { if (this.shown && !document.hidden) this.look(); }, every);
    new ResizeObserver(() => this.arrows()).observe($('units'));
  }

  show(on) {
    this.shown = on;
    $('waits').hidden = !on;
    if (on) this.look();
  }

  async look() {
    if (this.asking) return;
    this.asking = true;
    try {
      const answer = await fetch('api/waits'), body = await answer.json();
      if (answer.status === 401) this.page.refused();
      else if (answer.ok) this.draw(body);
      else this.fail(body.error);
    } catch { /* the stream tells that nobody answers */ } finally {
      this.asking = false;
    }
  }

  fail(text) {
    this.was = undefined;
    this.edges = [];
    $('deadlocks').replaceChildren();
    $('units').replaceChildren();
    $('no-waits').textContent = show(text);
  }

  draw(w) {
    const was = JSON.stringify(w);
    if (was === this.was) return; // nothing that has the focus is made anew
    this.was = was;
    $('coalescer').textContent = w.coalescer ? 'Coalescer: ' + show(process(w.coalescer) || w.coalescer.id) + (w.stand_by ? ', ' + w.stand_by + ' would follow' : '') : 'Nobody serves as the coalescer.';
    $('deadlocks').replaceChildren(...w.deadlocks.map(deadlock));
    const stuck = new Set(w.deadlocks.flatMap(c => c.map(e => e.unit || e.owner)));
    const focused = $('units').contains(document.activeElement) ? document.activeElement.dataset.id : undefined;
    const nodes = order(w.units);
    $('units').replaceChildren(...nodes.map(n => this.line(n, stuck.has(n.id))));
    if (focused !== undefined) ([...$('units').querySelectorAll('[data-id]')].find(b => b.dataset.id === focused) || $('waits')).focus();
    $('no-waits').textContent = w.units.length ? (w.all > w.units.length ? 'and ' + (w.all - w.units.length) + ' more' : '')
      : 'Nobody who holds something waits for long.';
    const place = new Map();
    nodes.forEach((n, i) => n.ids.forEach(id => place.set(id, i)));
    this.edges = nodes.flatMap((n, i) => n.waits.flatMap(x => x.blockers.map(b => ({ from: i, to: place.get(b.id), bad: stuck.has(n.id) && stuck.has(nodes[place.get(b.id)]?.id) }))))
      .filter(e => e.to !== undefined && e.to !== e.from);
    this.arrows();
  }

  line(n, stuck) {
    const waits = n.waits.map(x => {
      const b = el('button', { type: 'button', class: 'link', 'data-id': n.id + '\n' + x.id }, el('bdi', {}, show(x.key)));
      b.addEventListener('click', () => this.open(x.key));
      return el('span', {}, ' waits for ', b, ' (' + x.mode + ')');
    });
    return el('li', { class: 'unit' + (stuck ? ' bad' : '') }, el('strong', {}, el('bdi', {}, show(n.name))),
      n.where && el('span', { class: 'quiet' }, ' ' + show(n.where)), ...waits, n.holds > 0 && el('span', { class: 'quiet' }, ', holds ' + plural(n.holds, 'lock')),
      !n.waits.length && el('span', { class: 'quiet' }, n.waiting ? ' waits, too' : ' is not known to wait'));
  }

  // arrows draws what waits for what, in the margin.
  arrows() {
    const lines = [...$('units').children], image = $('arrows'), margin = 56;
    image.setAttribute('height', $('units').offsetHeight);
    image.replaceChildren();
    if (!this.shown || !lines.length) return;
    const middle = i => lines[i].offsetTop + lines[i].offsetHeight / 2;
    for (const e of this.edges) {
      const a = middle(e.from), b = middle(e.to) + (e.to > e.from ? -5 : 5), x = margin - 4, deep = Math.min(margin - 10, 14 + 7 * Math.abs(e.to - e.from));
      const c = e.bad ? 'bad' : '';
      image.append(svg('path', { d: `M${x} ${a} C${x - deep} ${a} ${x - deep} ${b} ${x - 6} ${b}`, class: c }), svg('path', { d: `M${x} ${b} l-7 -4 v8 z`, class: 'head ' + c }));
    }
  }
}

// order makes nodes of the units, and of those they wait for, with everybody before whom it waits for.
function order(units) {
  const nodes = units.map(u => ({
    id: u.unit, name: u.owner || u.unit, where: process(u), waits: u.waits, holds: u.holds.length, ids: [...u.holds, ...u.waits.map(w => w.id)],
  }));
  const by = new Map(nodes.flatMap(n => n.ids.map(id => [id, n])));
  for (const b of units.flatMap(u => u.waits.flatMap(w => w.blockers))) {
    if (by.has(b.id)) continue;
    const n = { id: b.id, name: b.owner, where: '', waits: [], holds: 0, waiting: b.waiting, ids: [b.id] };
    by.set(b.id, n);
    nodes.push(n);
  }
  const placed = new Set(), sorted = [];
  const place = n => {
    for (const todo = [n]; todo.length;) { // without recursion: a chain may be long
      const next = todo.pop();
      if (placed.has(next)) continue;
      placed.add(next);
      sorted.push(next);
      for (const b of next.waits.flatMap(w => w.blockers)) todo.push(by.get(b.id));
    }
  };
  const awaited = new Set(nodes.flatMap(n => n.waits.flatMap(w => w.blockers.map(b => by.get(b.id)))));
  for (const n of nodes) if (!awaited.has(n)) place(n);
  nodes.forEach(place); // those in a circle
  return sorted;
}

function deadlock(cycle) {
  const who = e => show(e.owner) + (e.host ? ' on ' + show(e.host) + (e.pid ? ' (' + e.pid + ')' : '') : '');
  const wait = e => who(e) + ' waits for ' + show(e.waits) + ', ' + (e.waiting ? 'waited for before by ' : 'held by ');
  return el('li', {}, 'Deadlock: ' + cycle.map(wait).join('') + who(cycle[0]) + '. The first one is about to give up.');
}

function svg(tag, attributes) {
  const e = document.createElementNS($('arrows').namespaceURI, tag);
  for (const [name, value] of Object.entries(attributes)) e.setAttribute(name, value);
  return e;
}
