/**
 * Checks docs/troubleshooting.md: every error text in src/ has an entry there, and every entry that is said to be ours is the text
 * of some error. Texts are the literals given to error classes and to the log from "warn" up; what is put in at run time is "…" in both.
 *
 * An entry is a line `> text`; one `…` in it stands for any run of characters, so that one entry can serve several texts.
 * A wrong command line or configuration (UsageError, ConfigError, PortNameError) has one entry for all: those texts say what is allowed.
 * Entries under a heading that contains "QEMU" or "guest" may be texts of other programs.
 * `--list` prints the texts without an entry, for whoever adds some. Exit status 1 if anything is wrong.
 */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

const PAGE = 'docs/troubleshooting.md';
/** Classes whose texts people get to see. RangeError and TypeError are for programmers: a wrong call of the API, or a fault of ours. */
const CLASSES = ['SysError', 'Error', 'RunDirError', 'CsbError'];
const CALLS = new RegExp(
  `(?:\\bsuper|new (?:${CLASSES.join('|')})|\\bhostError|\\blog\\.(?:warn|error|fatal)|#log(?=\\('(?:warn|error)')|\\bwarn)\\(`,
  'g',
);

/** Reads `'…' + \`…\`` from `at` on: the text with "…" for what is inserted, or undefined if it begins with something else. */
function literal(source, at) {
  let text;
  let i = at;
  for (;;) {
    while (/[\s([]/.test(source[i] ?? '')) i++;
    const quote = source[i];
    if (quote !== "'" && quote !== '"' && quote !== '`') return text;
    text = text ?? '';
    for (i++; source[i] !== quote; i++) {
      if (source[i] === '\\') text += source[++i] === 'n' ? ' ' : source[i];
      else if (quote === '`' && source.startsWith('${', i)) {
        i = endOfInsertion(source, i);
        text += '…';
      } else text += source[i];
    }
    i++;
    while (/\s/.test(source[i] ?? '')) i++;
    if (source[i] !== '+') return text;
    i++;
  }
}

/** Index of the brace that ends `${` at `at`; templates inside it may have insertions of their own. */
function endOfInsertion(source, at) {
  let depth = 0;
  for (let i = at + 1; i < source.length; i++) {
    if (source[i] === '{') depth++;
    else if (source[i] === '}' && --depth === 0) return i;
  }
  return source.length;
}

const words = (text) => text.replaceAll(/…+/g, '').replaceAll(/[^A-Za-z]/g, '').length;

/** Texts of all errors, with their files. Those that are nothing but insertions are not texts. */
function texts() {
  const found = new Map();
  for (const name of readdirSync('src', { recursive: true }).map(String)) {
    if (!name.endsWith('.ts') || name.startsWith('datapath/')) continue;
    const source = readFileSync(join('src', name), 'utf8');
    for (const { index, 0: call } of source.matchAll(CALLS)) {
      let at = index + call.length;
      const object = /^\s*\{[^}]*\},\s*/.exec(source.slice(at)); // pino's first argument
      if (object !== null) at += object[0].length;
      at += /^\s*(?:errno\.\w+|'(?:warn|error)'),\s*/.exec(source.slice(at))?.[0].length ?? 0; // CsbError's first, #log's first
      const text = literal(source, at);
      if (text !== undefined && words(text) >= 4) found.set(text.replaceAll(/\s+/g, ' '), `src/${name}`);
    }
  }
  return found;
}

/** Whether an entry stands for a text: its "…" stand for anything, and an insertion of the text for anything too. */
function covers(entry, text) {
  const pattern = entry
    .split('…')
    .map((part) => part.replaceAll(/[.*+?^${}()|[\]\\]/g, String.raw`\$&`))
    .join('.*');
  return new RegExp(`^(?:… ?:? ?)?${pattern}`, 's').test(text);
}

const entries = [];
let heading = '';
for (const line of readFileSync(PAGE, 'utf8').split('\n')) {
  if (line.startsWith('#')) heading = line;
  const text = /^> `?(.*?)`?$/.exec(line)?.[1];
  if (text !== undefined) entries.push({ text, foreign: /QEMU|guest/.test(heading) });
}

const ours = [...texts()];
const missing = ours.filter(([text]) => !entries.some((entry) => covers(entry.text, text)));
const stale = entries.filter((e) => !e.foreign && !ours.some(([text]) => covers(e.text, text)));
if (process.argv.includes('--list')) {
  for (const [text, file] of missing) process.stdout.write(`${file}\n> ${text}\n`);
} else {
  for (const [text, file] of missing) process.stderr.write(`${PAGE}: no entry for an error of ${file}: ${text}\n`);
}
for (const { text } of stale) process.stderr.write(`${PAGE}: no error of ptnet says this any more: ${text}\n`);
process.stdout.write(`  ${ours.length} error texts, ${entries.length} entries\n`);
process.exit(missing.length + stale.length === 0 ? 0 : 1);
