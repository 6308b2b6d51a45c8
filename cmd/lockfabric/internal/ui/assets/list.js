// The list: a tree in one scrolled box of which only the rows that can be seen exist.
import { $, el, show } from './text.js';

const spare = 6; // rows above and below what can be seen

// List shows items {id, level, open, fill(row)}: open is undefined for a leaf, and fill
// makes the cells. choose(item) is called for Enter or a click, fold(item, open) to
// open or close.
export class List {
  constructor(choose, fold) {
    this.box = $('list');
    this.space = $('space');
    this.choose = choose;
    this.fold = fold;
    this.items = [];
    this.places = new Map(); // id -> index
    this.current = ''; // id of the item that the keyboard is at
    this.narrow = matchMedia('(max-width: 700px)');
    this.narrow.addEventListener('change', () => this.draw());
    this.box.addEventListener('scroll', () => this.draw(), { passive: true });
    new ResizeObserver(() => this.draw()).observe(this.box);
    this.box.addEventListener('keydown', e => this.key(e));
    this.box.addEventListener('click', e => this.click(e));
  }

  get height() { return this.narrow.matches ? 58 : 36; }

  set(items) {
    // When the current item goes, the keyboard stays at its place.
    const at = this.index();
    this.items = items;
    this.places = new Map(items.map((item, i) => [item.id, i]));
    if (this.current && !this.places.has(this.current)) {
      this.current = items.length ? items[Math.min(Math.max(at, 0), items.length - 1)].id : '';
    }
    this.draw();
  }

  index() { return this.places.get(this.current) ?? -1; }

  draw() {
    const h = this.height, top = this.box.scrollTop;
    const from = Math.max(0, Math.floor(top / h) - spare);
    const to = Math.min(this.items.length, Math.ceil((top + this.box.clientHeight) / h) + spare);
    const rows = [];
    for (let i = from; i < to; i++) {
      const item = this.items[i];
      const row = el('div', {
        class: 'row' + (item.class ? ' ' + item.class : '') + (item.id === this.current ? ' current' : ''), id: 'row-' + i, role: 'treeitem',
        'aria-level': item.level + 1, 'aria-expanded': item.open === undefined ? undefined : String(item.open),
        'aria-selected': String(item.id === this.current), 'aria-setsize': this.items.length, 'aria-posinset': i + 1,
      });
      row.dataset.index = i;
      row.style.transform = `translateY(${i * h}px)`;
      row.style.height = h + 'px';
      item.fill(row);
      (this.narrow.matches ? row : row.firstChild).style.paddingInlineStart = item.level * 1.1 + (this.narrow.matches ? 0.7 : 0) + 'rem';
      rows.push(row);
    }
    this.space.style.height = this.items.length * h + 'px';
    this.space.replaceChildren(...rows);
    const at = this.index();
    if (at >= from && at < to) this.box.setAttribute('aria-activedescendant', 'row-' + at);
    else this.box.removeAttribute('aria-activedescendant');
  }

  go(index) {
    if (!this.items.length) return;
    index = Math.min(Math.max(index, 0), this.items.length - 1);
    this.current = this.items[index].id;
    const h = this.height, top = index * h;
    if (top < this.box.scrollTop) this.box.scrollTop = top;
    else if (top + h > this.box.scrollTop + this.box.clientHeight) this.box.scrollTop = top + h - this.box.clientHeight;
    this.draw();
  }

  key(e) {
    if (e.ctrlKey || e.metaKey || e.altKey) return;
    const at = this.index(), item = this.items[at];
    const page = Math.max(1, Math.floor(this.box.clientHeight / this.height) - 1);
    const moves = { ArrowDown: at + 1, ArrowUp: at - 1, PageDown: at + page, PageUp: at - page, Home: 0, End: this.items.length - 1 };
    if (e.key in moves) this.go(moves[e.key]);
    else if (!item) return;
    else if (e.key === 'ArrowRight') item.open === false ? this.fold(item, true) : item.open && this.go(at + 1);
    else if (e.key === 'ArrowLeft') item.open ? this.fold(item, false) : this.go(this.parent(at));
    else if (e.key === 'Enter' || e.key === ' ') item.open === undefined ? this.choose(item) : this.fold(item, !item.open);
    else return;
    e.preventDefault();
  }

  parent(at) {
    for (let i = at - 1; i >= 0; i--) if (this.items[i].level < this.items[at].level) return i;
    return at;
  }

  click(e) {
    const row = e.target.closest('.row');
    const item = row && this.items[row.dataset.index];
    if (!item) return;
    this.current = item.id;
    if (item.open === undefined) this.choose(item);
    else this.fold(item, !item.open);
    this.draw();
  }
}

// tree makes items of names, whose levels are separated by slashes. leaf(row, key, label)
// and branch(row, label, count, waiting, open) make the cells.
export function tree(rows, folded, leaf, branch) {
  const root = newNode('', '');
  for (const r of rows) {
    let node = root;
    const levels = r.key.split('/');
    for (const level of levels.slice(0, -1)) {
      let next = node.branches.get(level);
      if (!next) node.branches.set(level, next = newNode(node.path + level + '/', level));
      node = next;
      node.count++;
      if (r.waiting) node.waiting++;
    }
    node.leaves.push([levels.at(-1), r]);
  }
  const items = [];
  const walk = (node, level) => {
    // A name and a branch of the same name stand together.
    const all = [...node.leaves.map(([label, r]) => [label, r, null]), ...[...node.branches.values()].map(n => [n.label, null, n])];
    all.sort(([a, r], [b]) => order.compare(a, b) || (a < b ? -1 : a > b ? 1 : r ? -1 : 1));
    for (const [label, r, n] of all) {
      if (r) {
        items.push({ id: 'k' + r.key, level, key: r.key, class: r.waiting ? 'waited' : '', fill: row => leaf(row, r, show(label)) });
        continue;
      }
      const open = !folded.has(n.path);
      items.push({ id: 'b' + n.path, level, path: n.path, open, class: 'branch', fill: row => branch(row, show(n.label) + '/', n, open) });
      if (open) walk(n, level + 1);
    }
  };
  walk(root, 0);
  return items;
}

const order = new Intl.Collator('en', { numeric: true });

const newNode = (path, label) => ({ path, label, count: 0, waiting: 0, branches: new Map(), leaves: [] });
