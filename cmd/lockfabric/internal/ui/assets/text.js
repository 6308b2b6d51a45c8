// Texts that others chose, and elements. Everything becomes text: nothing here makes
// HTML of a string.

// show makes characters visible that are invisible, move the eye or look like a space,
// and spaces that would not be seen.
export const show = s => String(s).replace(/[\p{C}\p{Zl}\p{Zp}]|(?! )\p{Zs}|^ +| +$| {2,}/gu, found => [...found].map(code).join('')) || '""';

const code = c => '\\u{' + c.codePointAt(0).toString(16) + '}';

// el makes an element. Its children are elements or texts; what is not there is left out.
export function el(tag, attributes = {}, ...children) {
  const e = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== false) e.setAttribute(name, value === true ? '' : value);
  }
  e.append(...children.filter(c => c || c === 0));
  return e;
}

export const $ = id => document.getElementById(id);

// age is the time since t, both in milliseconds.
export function age(t, now) {
  const s = Math.max(0, Math.floor((now - t) / 1000));
  if (s < 60) return s + ' s';
  if (s < 3600) return Math.floor(s / 60) + ' min ' + s % 60 + ' s';
  if (s < 86400) return Math.floor(s / 3600) + ' h ' + Math.floor(s % 3600 / 60) + ' min';
  return Math.floor(s / 86400) + ' d ' + Math.floor(s % 86400 / 3600) + ' h';
}

// length is a length of time in nanoseconds.
export const length = ns => ns < 1e9 ? Math.round(ns / 1e6) + ' ms' : age(0, ns / 1e6);

// process says who is behind a lease.
export function process(lease) {
  if (!lease || !lease.host) return '';
  return (lease.label ? lease.label + ' on ' : '') + lease.host + (lease.pid ? ' (' + lease.pid + ')' : '');
}

// plural counts things.
export const plural = (n, one, many) => n + ' ' + (n === 1 ? one : many || one + 's');
