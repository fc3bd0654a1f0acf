/**
 * Checks the documents: every relative link in a Markdown file leads to a file that exists, and its anchor, if it has
 * one, to a heading there. The `--help` of every command stands in exactly one document, in the code block after
 * the line `<!-- ptnet NAME --help -->`. Prints what is wrong; exit status 1 if anything is.
 *
 * `node tools/check-docs.mjs --write` writes the help into the pages. The commands have to be built.
 */
import { execFileSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
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

/** What `ptnet ARGS --help` prints, the same on every terminal. */
const help = (...args) =>
  execFileSync(process.execPath, ['dist/src/cli/main.js', ...args, '--help'], {
    encoding: 'utf8',
    env: { ...process.env, NO_COLOR: '1' },
  }).trimEnd();

const say = (line) => {
  process.stdout.write(`${line}\n`);
  wrong += 1;
};

const commands = [...help().matchAll(/^ {2}([a-z][a-z-]*)/gm)].map((m) => m[1]).filter((name) => name !== 'help');
for (const name of commands) {
  const mark = `<!-- ptnet ${name} --help -->\n\n`;
  const pages = files.filter((file) => readFileSync(file, 'utf8').includes(mark));
  if (pages.length !== 1) say(`ptnet ${name} --help stands in ${pages.length} documents (${pages}), not in one`);
  for (const file of pages) {
    const [before, rest] = readFileSync(file, 'utf8').split(mark);
    const [, block, after] = /^(```\n[\s\S]*?\n?```\n)([\s\S]*)$/.exec(rest) ?? [];
    const wanted = `\`\`\`\n${help(name)}\n\`\`\`\n`;
    if (block === wanted) continue;
    if (block === undefined) say(`${file}: no code block after ${mark.trim()}`);
    else if (process.argv.includes('--write')) writeFileSync(file, before + mark + wanted + after);
    else say(`${file}: differs from ptnet ${name} --help; node tools/check-docs.mjs --write`);
  }
}
process.stdout.write(`  the help of ${commands.length} commands\n`);
process.stdout.write(`  ${files.length} documents, ${wrong} wrong\n`);
process.exitCode = wrong === 0 ? 0 : 1;
