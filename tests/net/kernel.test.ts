/** Our segments and checksums against the Linux kernel's own, on random packets. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';
import { netSkip } from './lab.ts';

const worker = fileURLToPath(new URL('kernel-worker.js', import.meta.url));
const runs = process.env['PTNET_LONG'] === '1' ? 20_000 : 1000;

describe('offloads against the kernel', () => {
  it('R5: the kernel segments and sums random packets to the same frames', { skip: netSkip() }, () => {
    const { status, stdout, stderr } = spawnSync('unshare', ['-n', process.execPath, worker, String(runs)], {
      encoding: 'utf8',
    });
    assert.equal(status, 0, stdout + stderr.slice(0, 4000));
  });
});
