/** Each of the 27 scenarios of netmap's utils/tests is among our tests, by its number. 024, over a veth pair, is in tests/nic. */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';

const root = new URL('../../../../tests/', import.meta.url).pathname;

test('scenarios 001 to 027 of netmap each have a test', () => {
  const sources = ['netmap-utils', 'nic']
    .flatMap((folder) => readdirSync(join(root, folder)).map((file) => join(root, folder, file)))
    .filter((file) => file.endsWith('.test.ts'))
    .map((file) => readFileSync(file, 'utf8'));
  // A number stands at the beginning of a name, or in the table that names are made from.
  const numbers = sources.flatMap((source) => [...source.matchAll(/['"`](0\d\d)[:'"`]/g)].map((m) => Number(m[1])));
  const missing = Array.from({ length: 27 }, (_, i) => i + 1).filter((n) => !numbers.includes(n));
  assert.deepEqual(missing, []);
});
