/**
 * Checks the documents: every relative link in a Markdown file leads to a file that exists, and its anchor, if it has
 * one, to a heading there. Prints what is wrong; exit status 1 if anything is.
 */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join, normalize } from 'node:path';

const files = [
  ...readdirSync('.').filter((f) => f.endsWith('.md')),
  ...(existsSync('docs') ? readdirSync('docs', { recursive: true }).map((f) => join('docs', String(f))) : []),
].filter((f) => f.endsWith('.md'));

/** A document's text without code, in which nothing is a link or a heading. */
const prose = (file) =>
  readFileSync(file, 'utf8')
    .replace(/^```[\s\S]*?^```/gm, '')
    .replace(/`[^`\n]*`/g, (code) => code.replace(/[[\]]/g, ' '));

/** GitHub's anchor of a heading: lower case, punctuation dropped, spaces to hyphens. */
const anchor = (heading) =>
  heading
    .toLowerCase()
    .replace(/[^\p{L}\p{N} _-]/gu, '')
    .trim()
    .replaceAll(' ', '-');

const anchors = new Map(
  files.map((file) => [file, new Set([...prose(file).matchAll(/^#+\s+(.*)$/gm)].map((m) => anchor(m[1])))]),
);

let wrong = 0;
for (const file of files) {
  for (const [, target] of prose(file).matchAll(/\]\(([^)\s]+)\)/g)) {
    if (/^[a-z]+:/.test(target)) continue; // another site
    const [path, fragment] = target.split('#');
    const to = path === '' ? file : normalize(join(dirname(file), path));
    const problem = !existsSync(to)
      ? 'no such file'
      : fragment !== undefined && anchors.has(to) && !anchors.get(to).has(fragment)
        ? `no heading "#${fragment}"`
        : undefined;
    if (problem === undefined) continue;
    process.stdout.write(`${file}: link to ${target}: ${problem}\n`);
    wrong += 1;
  }
}
process.stdout.write(`  ${files.length} documents, ${wrong} wrong links\n`);
process.exitCode = wrong === 0 ? 0 : 1;
