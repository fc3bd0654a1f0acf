/** Nothing is allocated for a packet in pkt-gen's loops. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import type { PktGenFlags } from '../../../src/cli/pkt-gen/options.ts';

test('pkt-gen allocates nothing for a packet', () => {
  const gate = fileURLToPath(new URL('allocation-gate.js', import.meta.url));
  const args = ['--expose-gc', '--min-semi-space-size=128', '--max-semi-space-size=128', gate];
  const { status, stdout, stderr } = spawnSync(process.execPath, args, { encoding: 'utf8' });
  assert.equal(status, 0, stderr);
  const results = JSON.parse(stdout) as [PktGenFlags, number][];
  assert.equal(results.length, 5);
  for (const [flags, bytes] of results) {
    // An object has 12 bytes and more. What is left here is used once for a batch, and by the report.
    assert.ok(bytes < 6, `${JSON.stringify(flags)}: ${bytes.toFixed(2)} bytes of heap a packet`);
  }
});
