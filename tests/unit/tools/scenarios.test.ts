/** Each of the 27 scenarios of netmap's utils/tests is among our tests, by its number; but 024: veth pairs are what tests/nic is about. */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';

const root = new URL('../../../../tests/', import.meta.url).pathname;

test('scenarios 001 to 027 of netmap, but 024, each have a test', () => {
  const folder = join(root, 'netmap-utils');
  const sources = readdirSync(folder)
    .filter((file) => file.endsWith('.test.ts'))
    .map((file) => readFileSync(join(folder, file), 'utf8'));
  // A number stands at the beginning of a name, or in the table that names are made from.
  const numbers = sources.flatMap((source) => [...source.matchAll(/['"`](0\d\d)[:'"`]/g)].map((m) => Number(m[1])));
  const missing = Array.from({ length: 27 }, (_, i) => i + 1).filter((n) => n !== 24 && !numbers.includes(n));
  assert.deepEqual(missing, []);
});
