/** Every rule of docs/rules.md is cited by the name of at least one test, and no test cites a rule that is none. */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';

const root = new URL('../../../..', import.meta.url).pathname;
const rules = new Set(
  [...readFileSync(join(root, 'docs/rules.md'), 'utf8').matchAll(/^\*\*R(\d+)\.\*\*/gm)].map((m) => Number(m[1])),
);

/** Names of tests: the first argument of test, it and describe, as it is written. */
function testNames(source: string): string[] {
  const call = /\b(?:test|it|describe)\(\s*(?:`((?:[^`\\]|\\.)*)`|'((?:[^'\\\n]|\\.)*)'|"((?:[^"\\\n]|\\.)*)")/g;
  return [...source.matchAll(call)].map((m) => m[1] ?? m[2] ?? m[3] ?? '');
}

/** "R1", "R12, R13", "R11–R16": numbers that a text cites. */
function cited(text: string): number[] {
  return [...text.matchAll(/\bR(\d+)(?:[–-]R?(\d+))?\b/g)].flatMap(([, from, to]) => {
    const first = Number(from);
    return Array.from({ length: Number(to ?? from) - first + 1 }, (_, i) => first + i);
  });
}

const files = readdirSync(join(root, 'tests'), { recursive: true, encoding: 'utf8' }).filter((f) =>
  f.endsWith('.test.ts'),
);
const byRule = new Map<number, string[]>();
for (const file of files) {
  for (const name of testNames(readFileSync(join(root, 'tests', file), 'utf8'))) {
    for (const rule of cited(name)) byRule.set(rule, [...(byRule.get(rule) ?? []), `${file}: ${name}`]);
  }
}

test('every rule is cited by the name of a test', () => {
  assert.ok(rules.size >= 21, `docs/rules.md has ${rules.size} rules`);
  const missing = [...rules].filter((rule) => !byRule.has(rule));
  assert.deepEqual(missing, [], 'rules without a test');
});

test('tests cite only rules that there are', () => {
  const unknown = [...byRule].filter(([rule]) => !rules.has(rule)).flatMap(([, names]) => names);
  assert.deepEqual(unknown, []);
});

test('the check sees lists and ranges of rules, in all kinds of quotes', () => {
  const source = "test('R1, R2: a', f); it(`R5–R7: ${b}`, f); describe(\"R9\", f); test('ERR3', f);";
  assert.deepEqual(testNames(source).flatMap(cited), [1, 2, 5, 6, 7, 9]);
});
