/** The reporter of ./test, on test files of its own: what it counts, shows, and takes for a failure. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { test, type TestContext } from 'node:test';

interface Counted {
  readonly passed: number;
  readonly failed: number;
  readonly skipped: readonly { readonly file: string; readonly name: string; readonly reason?: string }[];
}

/** What ./test counts for a test file with this text. */
function count(t: TestContext, text: string): Counted & { output: string } {
  const dir = mkdtempSync(join(tmpdir(), 'ptnet-reporter-'));
  t.after(() => rmSync(dir, { recursive: true }));
  const file = join(dir, 'x.test.mjs');
  writeFileSync(file, `import { describe, test } from 'node:test';\n${text}`);
  const reporter = resolve('tools/test-reporter.mjs');
  const { NODE_TEST_CONTEXT: _, ...env } = process.env; // or the inner runner would think itself part of this one
  const { stdout } = spawnSync(
    process.execPath,
    ['--test', `--test-reporter=${reporter}`, '--test-reporter-destination=stdout', file],
    { cwd: dir, encoding: 'utf8', env: { ...env, PTNET_TEST_RESULT: join(dir, 'result.json') } },
  );
  return { ...(JSON.parse(readFileSync(join(dir, 'result.json'), 'utf8')) as Counted), output: stdout };
}

test('tests are counted, suites are not; a failure is shown once, with its text', (t) => {
  const { passed, failed, skipped, output } = count(
    t,
    `test('a', () => {});
     describe('s', () => { test('b', () => {}); test('c', () => { throw new Error('boom'); }); });`,
  );
  assert.deepEqual([passed, failed, skipped], [2, 1, []]);
  assert.equal(output.split('boom').length, 2, output);
});

test('skipped tests are listed with their reasons; without one, that is seen', (t) => {
  const { passed, skipped } = count(
    t,
    `test('a', { skip: 'no kvm' }, () => {});
     test('b', { skip: true }, () => {});
     test('c', (t) => t.skip('later'));`,
  );
  assert.equal(passed, 0);
  assert.deepEqual(
    skipped.map(({ name, reason }) => [name, reason]),
    [
      ['a', 'no kvm'],
      ['b', undefined],
      ['c', 'later'],
    ],
  );
});

test('a file that ends before its tests is a failure', (t) => {
  assert.equal(count(t, `test('a', () => {});\nprocess.exit(1);`).failed, 1);
  assert.equal(count(t, `throw new Error('at load');`).failed, 1);
});
