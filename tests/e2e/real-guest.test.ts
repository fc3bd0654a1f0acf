/** The command line of e2e/real-guest. Images to run with it are not part of this repository (e2e/README.md). */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { root } from './ptnet.ts';

function realGuest(...args: string[]): Promise<{ code: number; stdout: string; stderr: string }> {
  return new Promise((resolve) => {
    execFile(join(root, 'e2e/real-guest'), args, (error, stdout, stderr) => {
      resolve({ code: error === null ? 0 : Number(error.code), stdout, stderr });
    });
  });
}

describe('e2e/real-guest', () => {
  test('--list names each step once, and --only finds them', async () => {
    const { stdout } = await realGuest('--list');
    const names = stdout
      .trim()
      .split('\n')
      .map((line) => line.split(' ')[0]!);
    assert.equal(new Set(names).size, names.length);
    assert.ok(names.includes('kill') && names.includes('q35-2cpu-bar32/tcp'));
  });

  test('every command of the contract stands in --help and in e2e/README.md', async () => {
    const { stdout } = await realGuest('--help');
    const commands = (text: string): string[] => [...new Set(text.match(/\bguest-[a-z-]+/g))].toSorted();
    assert.deepEqual(commands(stdout), commands(readFileSync(join(root, 'e2e/README.md'), 'utf8')));
  });

  test('a wrong command line: one line that says what to do, status 2', async () => {
    for (const [args, text] of [
      [[], /give --kernel and --initrd, or --disk/],
      [['--disk', '/nowhere'], /no file \/nowhere/],
      [['--disk', '/dev/null', '--only', 'nothing'], /no step nothing/],
      [['--bad'], /--bad/],
    ] as const) {
      const { code, stderr } = await realGuest(...args, '--qemu', '/bin/false');
      assert.equal(code, 2, stderr);
      assert.match(stderr, text);
    }
  });
});
