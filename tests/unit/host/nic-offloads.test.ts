/** The record of offloads that were switched off: what is none is refused, whatever it holds. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import fc from 'fast-check';
import { NicOffloads, parseOffloads, type SwitchedOff } from '../../../src/host/nic-offloads.ts';

const base = mkdtempSync(join(tmpdir(), 'ptnet-offloads-'));
after(() => rmSync(base, { recursive: true, force: true }));
let n = 0;

const entry: SwitchedOff = {
  boot: '0c64b9a8-0000-4000-8000-00000000c0de',
  netns: 'net:[4026531840]',
  ifindex: 7,
  mac: '02:00:00:00:00:01',
  name: 'veth0',
  off: ['rxvlan', 'gro'],
};

/** What a daemon's start says of a file. */
function recover(file: string): string[] {
  const said: string[] = [];
  new NicOffloads(file, (level, message) => void said.push(`${level}: ${message}`)).recover();
  return said;
}

test('a record is read as it was written', () => {
  assert.deepEqual(parseOffloads(JSON.stringify([entry, { ...entry, off: ['lro'] }]))[1]!.off, ['lro']);
  assert.deepEqual(parseOffloads('[]'), []);
});

test('whatever else is there is refused, and says where', () => {
  const wrong: [keyof SwitchedOff, unknown[]][] = [
    ['boot', [undefined, '', 1, '../../etc']],
    ['netns', [undefined, 'net:[]', 'mnt:[4026531840]', 'net:[4026531840]\n']],
    ['ifindex', [undefined, 0, -1, 1.5, '7', 2 ** 31]],
    ['mac', [undefined, '', '02:00:00:00:00', '02:00:00:00:00:01:02', 'xx:00:00:00:00:01']],
    ['name', [undefined, '', 'a/b', 'a b', 'a\0b', 'sixteen-letters!', 'ääääääää']],
    ['off', [undefined, 'gro', ['tso'], ['gro', 'gro'], [1], [{}]]],
  ];
  for (const [field, values] of wrong) {
    for (const value of values) {
      const text = JSON.stringify([entry, { ...entry, [field]: value }]);
      assert.throws(() => parseOffloads(text), { message: `"${field}" of entry 1` }, text);
    }
  }
  for (const text of ['', '{}', 'null', '[null]', '[1]', JSON.stringify(Array.from({ length: 257 }, () => entry))]) {
    assert.throws(() => parseOffloads(text), Error, text);
  }
  fc.assert(
    fc.property(fc.json(), (text) => {
      if (text === '[]') return;
      assert.throws(() => parseOffloads(text));
    }),
  );
});

test('a file that is no record is warned of and left; one that is not there is not', () => {
  const file = join(base, `${n++}`);
  assert.deepEqual(recover(file), []);
  writeFileSync(file, '[{}]');
  assert.match(recover(file).join('\n'), /^warn: .* is ignored, as it is no record of offloads: "boot" of entry 0$/);
  assert.equal(readFileSync(file, 'utf8'), '[{}]');
  writeFileSync(file, '['.repeat(2 ** 17 + 1));
  assert.match(recover(file).join('\n'), /^warn: .*no file of at most 131072 bytes$/);
});

test('neither a directory, a link nor a pipe in its place is read or waited for', () => {
  const [folder, link, pipe] = [join(base, `${n++}`), join(base, `${n++}`), join(base, `${n++}`)];
  mkdirSync(folder);
  symlinkSync('/dev/zero', link);
  assert.equal(spawnSync('mkfifo', [pipe]).status, 0);
  for (const file of [folder, link, pipe]) {
    assert.match(recover(file).join('\n'), /^warn: .* is ignored, as it is no record of offloads: /);
    assert.ok(existsSync(file));
  }
});

test('what another boot left is forgotten, what another network namespace left is kept', () => {
  const file = join(base, `${n++}`);
  const boot = readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
  const elsewhere = { ...entry, boot, netns: 'net:[1]' };
  writeFileSync(file, JSON.stringify([entry, elsewhere]));
  assert.deepEqual(recover(file), []);
  assert.deepEqual(parseOffloads(readFileSync(file, 'utf8')), [elsewhere]);
  writeFileSync(file, JSON.stringify([entry]));
  assert.deepEqual(recover(file), []);
  assert.equal(existsSync(file), false);
});
