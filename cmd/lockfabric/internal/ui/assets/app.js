// The page: session, stream of changes, and what the list is made of.
import { $, age, el, plural, process, show } from './text.js';
import { List, tree } from './list.js';
import { Details } from './details.js';
import { Waits } from './waits.js';

const rows = new Map(); // key -> row
const leases = new Map(); // id -> lease
const folded = new Set(); // paths of branches that are closed
let stream, ready = false, ahead = 0, drawing = false, pause = 50, byProcess = false;
const tabs = ['by-name', 'by-process', 'by-waits'];

const page = { release: false, now: () => Date.now() + ahead, refused: loggedOut };
const list = new List(choose, (item, open) => {
  open ? folded.delete(item.path) : folded.add(item.path);
  redraw();
});
const details = new Details(page, () => {
  if (location.hash) history.pushState(null, '', location.pathname);
  $('list').focus();
});

const waits = new Waits(page, key => choose({ key }));

// Drawing

// soon draws once for all changes that come together, and leaves time for other things.
function soon() {
  if (drawing) return;
  drawing = true;
  setTimeout(() => {
    const begun = performance.now();
    drawing = false;
    redraw();
    pause = Math.min(Math.max(50, 3 * (performance.now() - begun)), 1000);
  }, pause);
}

function redraw() {
  const words = $('search').value.toLowerCase().split(/\s+/).filter(Boolean), waited = $('waited').checked;
  const found = [];
  for (const r of rows.values()) {
    if (waited && !r.waiting) continue;
    if (words.length && !words.every(w => textOf(r).includes(w))) continue;
    found.push(r);
  }
  list.set(byProcess ? processes(found) : tree(found, folded, leaf, branch));
  let waiting = 0;
  for (const r of rows.values()) if (r.waiting) waiting++;
  $('counts').textContent = (found.length < rows.size ? found.length + ' of ' : '') + plural(rows.size, 'name') + (waiting ? ', ' + waiting + ' waited for' : '');
  $('fold').hidden = !byProcess && !list.items.some(i => i.open !== undefined);
  $('fold').textContent = list.items.some(i => i.open) ? 'Fold all' : 'Unfold all';
  $('empty').hidden = waits.shown || list.items.length > 0;
  $('empty').textContent = !ready ? 'Looking…' : rows.size ? 'Nothing matches.' : 'Nothing is in use.';
}

// textOf is what a search looks in.
function textOf(r) {
  const text = [r.key, r.kind, r.state];
  for (const h of r.holders) text.push(h.owner || '', h.token, process(leases.get(h.lease)));
  if (r.next) text.push(process(leases.get(r.next)));
  return text.join('\n').toLowerCase();
}

const dead = id => ['stale', 'dead', 'missing'].includes(leases.get(id)?.state);

function heldBy(r) {
  const h = r.holders[0];
  if (!h) return '';
  const text = h.owner || process(leases.get(h.lease)) || h.lease;
  return el('span', { class: dead(h.lease) ? 'bad' : '' }, el('bdi', {}, show(text)), r.held > 1 && ' +' + (r.held - 1), dead(h.lease) && ' — looks dead', h.revoked && ' — told to let go');
}

function leaf(row, r, label) {
  const h = r.holders[0];
  row.title = show(r.key);
  row.append(el('span', { class: 'name' }, el('bdi', {}, label)), el('span', { class: 'kind' }, r.kind), el('span', { class: 'state' }, r.state, h?.mode && ' (' + h.mode + ')'),
    el('span', { class: 'by' }, heldBy(r)), el('span', { class: 'age' }, h && age(Date.parse(h.since), page.now())),
    el('span', { class: 'waiting' }, r.waiting || ''));
}

function branch(row, label, node, open) {
  row.append(el('span', { class: 'name' }, el('span', { class: 'twisty', 'aria-hidden': 'true' }, open ? '▾' : '▸'), el('bdi', {}, label)),
    el('span', { class: 'count' }, plural(node.count, 'name') + (node.waiting ? ', ' + node.waiting + ' waited for' : '')));
}

// processes makes items of the leases that hold something, with the names under each.
function processes(found) {
  const by = new Map();
  for (const r of found) {
    for (const h of r.holders) {
      if (!by.has(h.lease)) by.set(h.lease, []);
      by.get(h.lease).push(r);
    }
  }
  const items = [];
  const named = [...by].map(([id, held]) => [show(process(leases.get(id)) || id), id, held]);
  for (const [label, id, held] of named.sort(([a], [b]) => a < b ? -1 : a > b ? 1 : 0)) {
    const path = '\n' + id, open = !folded.has(path); // no name has a line break
    const waiting = held.filter(r => r.waiting).length;
    items.push({
      id: 'l' + id, level: 0, path, open, class: 'branch' + (dead(id) ? ' bad' : ''),
      fill: row => branch(row, label + (dead(id) ? ' — looks dead' : ''), { count: held.length, waiting }, open),
    });
    if (open) for (const r of held) items.push({ id: 'l' + id + '\n' + r.key, level: 1, key: r.key, class: r.waiting ? 'waited' : '', fill: row => leaf(row, r, show(r.key)) });
  }
  return items;
}

// Moving about

function choose(item) {
  history.pushState(null, '', '#name=' + encodeURIComponent(item.key));
  details.open(item.key);
}

function located() {
  const at = location.hash.match(/^#name=(.*)$/);
  if (!at) return details.close();
  try {
    details.open(decodeURIComponent(at[1]));
  } catch { /* not a name */ }
}

function turnTo(tab) {
  byProcess = tab === 'by-process';
  for (const id of tabs) {
    $(id).setAttribute('aria-selected', String(id === tab));
    $(id).tabIndex = id === tab ? 0 : -1;
  }
  document.body.classList.toggle('waits', tab === 'by-waits');
  waits.show(tab === 'by-waits');
  redraw();
}

for (const id of tabs) $(id).addEventListener('click', () => turnTo(id));
document.querySelector('[role=tablist]').addEventListener('keydown', e => {
  const step = { ArrowLeft: tabs.length - 1, ArrowRight: 1 }[e.key];
  if (!step) return;
  const tab = tabs[(tabs.indexOf(e.target.id) + step) % tabs.length];
  turnTo(tab);
  $(tab).focus();
});
$('search').addEventListener('input', soon);
$('search').addEventListener('keydown', e => {
  if (e.key === 'Escape' && $('search').value) {
    $('search').value = '';
    redraw();
  } else if (e.key === 'ArrowDown' || e.key === 'Enter') {
    $('list').focus();
    if (list.index() < 0) list.go(0);
  } else return;
  e.preventDefault();
});
$('list').addEventListener('focus', () => { if (list.index() < 0) list.go(0); });
$('waited').addEventListener('change', redraw);
$('fold').addEventListener('click', () => {
  const open = list.items.some(i => i.open);
  if (!open) folded.clear();
  // Those inside of others come out when these are closed from the bottom.
  else for (const item of list.items) if (item.open !== undefined) folded.add(item.path);
  redraw();
});
document.addEventListener('keydown', e => {
  if (e.key === '/' && !e.target.closest('input, dialog') && !e.ctrlKey && !e.metaKey && !e.altKey) {
    $('search').focus();
    $('search').select();
    e.preventDefault();
  } else if (e.key === 'Escape' && !e.defaultPrevented && !$('release').open) details.close();
});
addEventListener('popstate', located);
addEventListener('hashchange', located);
setInterval(() => { if (ready && !document.hidden) list.draw(); }, 1000); // ages

// The stream

function state(text, look) {
  $('live').textContent = text;
  $('live').className = look;
}

function follow() {
  stream?.close();
  ready = false;
  state('connecting', '');
  const on = (event, fn) => stream.addEventListener(event, e => fn(JSON.parse(e.data)));
  let begun; // names of the stream that begins, until all have come
  stream = new EventSource('api/events');
  on('hello', hello => {
    ahead = Date.parse(hello.now) - Date.now();
    page.release = hello.release;
    begun = new Set();
    $('fabric').textContent = show(hello.fabric);
    document.title = show(hello.fabric) + ' – lockfabric';
    trouble('');
  });
  on('rows', change => {
    for (const r of change.rows) {
      rows.set(r.key, r);
      begun?.add(r.key);
    }
    for (const key of change.gone) rows.delete(key);
    if (details.key !== null && (change.rows.some(r => r.key === details.key) || change.gone.includes(details.key))) details.look();
    soon();
  });
  on('ready', () => {
    if (begun) for (const key of rows.keys()) if (!begun.has(key)) rows.delete(key); // went while nobody told
    begun = undefined;
    ready = true;
    state('live', 'good');
    soon();
  });
  on('leases', found => {
    for (const [id, l] of Object.entries(found)) leases.set(id, l);
    soon();
  });
  on('trouble', t => trouble(t.text));
  stream.onerror = async () => {
    state('not connected', 'bad');
    const closed = stream.readyState === EventSource.CLOSED;
    let status = 0;
    try {
      status = (await fetch('api/session')).status;
    } catch { /* nobody is there */ }
    if (status === 401) loggedOut();
    else if (closed) setTimeout(follow, 2000);
  };
}

function trouble(text) {
  $('trouble').hidden = !text;
  if (text) {
    $('trouble').textContent = 'No news from the server since ' + new Date().toLocaleTimeString() + ', what is shown may be old: ' + show(text);
    state('not live', 'bad');
  } else if (ready) state('live', 'good');
}

// The session

function loggedOut() {
  stream?.close();
  rows.clear();
  leases.clear();
  list.set([]);
  if ($('release').open) $('release').close();
  $('app').hidden = true;
  $('login').hidden = false;
  $('token').focus();
}

function loggedIn() {
  $('login').hidden = true;
  $('app').hidden = false;
  $('list').focus();
  redraw();
  follow();
  located();
}

async function logIn(token) {
  const answer = await fetch('api/login', { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify({ token }) });
  if (answer.ok) return loggedIn();
  loggedOut();
  $('login-error').textContent = answer.status === 401 ? 'This is not the token.' : show((await answer.json()).error);
}

$('login').addEventListener('submit', e => {
  e.preventDefault();
  const token = $('token').value.trim();
  $('token').value = '';
  logIn(token).catch(() => { $('login-error').textContent = 'Nobody answers.'; });
});
$('logout').addEventListener('click', async () => {
  await fetch('api/logout', { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: '{}' }).catch(() => {});
  details.close();
  loggedOut();
});

const given = location.hash.match(/^#token=(.+)$/);
if (given) {
  history.replaceState(null, '', location.pathname); // out of the address and the history
  logIn(decodeURIComponent(given[1])).catch(loggedOut);
} else {
  fetch('api/session').then(a => a.ok ? loggedIn() : loggedOut(), loggedOut);
}
