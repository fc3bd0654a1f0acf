/**
 * Reporter of `node --test` for run-tests.mjs: prints failures in full, skipped tests with their reason and one line per
 * file, and writes what happened as JSON to the file named by PTNET_TEST_RESULT:
 * `{ passed, failed, skipped: [{ file, name, reason }] }`. Suites are not counted, their tests are.
 */
import { writeFileSync } from 'node:fs';
import { relative } from 'node:path';
import { inspect } from 'node:util';

/** Where a test stands, as the source's path: dist/tests/unit/x.test.js is tests/unit/x.test.ts. */
function sourceOf(file) {
  if (file === undefined) return '?';
  return relative(process.cwd(), file)
    .replace(/^dist\//, '')
    .replace(/\.js$/, '.ts');
}

function describeError(error) {
  // node:test wraps what a test threw.
  const cause = error?.cause ?? error;
  return cause instanceof Error ? (cause.stack ?? cause.message) : typeof cause === 'string' ? cause : inspect(cause);
}

export default async function* report(events) {
  const result = { passed: 0, failed: 0, skipped: [] };
  const files = new Map();
  for await (const { type, data } of events) {
    if (type === 'test:stdout' || type === 'test:stderr') {
      yield data.message;
      continue;
    }
    if (type !== 'test:pass' && type !== 'test:fail') continue;
    if (data.details?.type === 'suite' && type === 'test:pass') continue;
    const file = sourceOf(data.file);
    const counts = files.get(file) ?? { passed: 0, failed: 0, skipped: 0 };
    files.set(file, counts);
    if (type === 'test:fail' && data.todo === undefined) {
      // A suite or file fails because a test in it did, which is reported on its own.
      if (data.details?.error?.failureType === 'subtestsFailed') continue;
      result.failed += 1;
      counts.failed += 1;
      yield `FAILED  ${file}:${data.line ?? 0}: ${data.name}\n${describeError(data.details?.error)}\n\n`;
    } else if (data.skip !== undefined && data.skip !== false) {
      const reason = typeof data.skip === 'string' && data.skip !== '' ? data.skip : undefined;
      result.skipped.push({ file, name: data.name, reason });
      counts.skipped += 1;
      yield `skipped ${file}: ${data.name}: ${reason ?? 'NO REASON GIVEN'}\n`;
    } else {
      result.passed += 1;
      counts.passed += 1;
    }
  }
  for (const [file, { passed, failed, skipped }] of files) {
    yield `  ${file}: ${passed} passed${failed > 0 ? `, ${failed} failed` : ''}${skipped > 0 ? `, ${skipped} skipped` : ''}\n`;
  }
  writeFileSync(process.env.PTNET_TEST_RESULT, JSON.stringify(result));
}
