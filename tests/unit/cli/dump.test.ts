/** dump: packets of a port as records of a capture, files in turn; its options. */
import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { NS_MOREFRAG, NS_TXMON } from '../../../src/api/index.ts';
import { dumpLoop, parseDump } from '../../../src/cli/commands/dump.ts';
import { CaptureFiles, fileName } from '../../../src/cli/dump/files.ts';
import { CaptureReader } from '../../../src/cli/pcap/reader.ts';
import { FakePort } from './fake-port.ts';

const dir = mkdtempSync(join(tmpdir(), 'ptnet-dump-'));
after(() => rmSync(dir, { recursive: true }));

function lengths(file: string): number[] {
  const reader = new CaptureReader(file);
  const list: number[] = [];
  while (reader.next()) list.push(reader.length);
  reader.close();
  return list;
}

test('packets become records: of several slots too, at most -c, cut at the snap length', async () => {
  for (const format of ['pcap', 'pcapng'] as const) {
    const path = join(dir, format);
    const port = new FakePort('', 16);
    port.receive(new Uint8Array(60).fill(1), NS_TXMON);
    port.receive(new Uint8Array(2048).fill(2), NS_MOREFRAG);
    port.receive(new Uint8Array(100).fill(3), 0);
    port.receive(new Uint8Array(61), 0);
    port.receive(new Uint8Array(62), 0);
    const files = new CaptureFiles({ path, format, snapLen: 2100, fileBytes: 0, fileCount: 0 }, 'vale0:x');
    const before = Date.now() / 1000;
    assert.equal(await dumpLoop(port, files, 3, { cancelled: false }), 3);
    files.close();
    assert.deepEqual(lengths(path), [60, 2148, 61]);
    assert.equal(port.rxRings[0]!.space(), 1);
    const reader = new CaptureReader(path);
    assert.ok(reader.next() && reader.next());
    assert.deepEqual([reader.data.length, reader.data[2047], reader.data[2099]], [2100, 2, 3]);
    assert.ok(Math.abs(reader.seconds + reader.nanoseconds / 1e9 - before) < 60);
    reader.close();
  }
});

test('-C and -W: files of a size, in a ring', async () => {
  const path = join(dir, 'ring');
  const plan = { path, format: 'pcapng', snapLen: 100, fileBytes: 1000, fileCount: 3 } as const;
  const files = new CaptureFiles(plan, 'x');
  for (let i = 0; i < 50; i++) {
    const writer = files.next();
    writer.begin(i, 0, 0);
    writer.add(new Uint8Array(100), 0, 100);
    writer.end();
  }
  files.close();
  const names = readdirSync(dir).filter((f) => f.startsWith('ring'));
  assert.deepEqual(names.sort(), ['ring0', 'ring1', 'ring2']);
  assert.ok(names.every((f) => lengths(join(dir, f)).length > 0));
  assert.deepEqual(
    [0, 1, 12].map((n) => fileName({ ...plan, fileCount: 0 }, n)),
    [path, `${path}1`, `${path}12`],
  );
  assert.deepEqual(
    [0, 9, 10].map((n) => fileName({ ...plan, fileCount: 10 }, n)),
    [`${path}0`, `${path}9`, `${path}0`],
  );
  assert.equal(fileName({ ...plan, fileCount: 100 }, 7), `${path}07`);
});

test('a next file that cannot be made is the error, not what comes of it', () => {
  const path = join(dir, 'next');
  mkdirSync(`${path}1`);
  const files = new CaptureFiles({ path, format: 'pcap', snapLen: 100, fileBytes: 20, fileCount: 0 }, 'x');
  assert.throws(() => files.next(), { code: 'EISDIR' });
  files.close();
  assert.equal(files.packets, 0);
});

test('options: the monitor that is opened, formats', () => {
  const name = (i: string, Q?: string): string => parseDump({ i, ...(Q === undefined ? {} : { Q }) }).port;
  assert.deepEqual(
    [name('vale0:x'), name('vale0:x', 'in'), name('vale0:x', 'out'), name('vale0:x/z'), name('vale0:x@conf:slots=9')],
    ['vale0:x/rt', 'vale0:x/r', 'vale0:x/t', 'vale0:x/z', 'vale0:x/rt@conf:slots=9'],
  );
  assert.equal(name('ptnet:1'), 'ptnet:1', 'in a machine: a monitor already');
  assert.equal(parseDump({ i: 'vale0:x', w: 'a.pcap' }).plan.format, 'pcap');
  assert.equal(parseDump({ i: 'vale0:x', w: 'a' }).plan.format, 'pcapng');
  assert.equal(parseDump({ i: 'vale0:x', pcap: true }).plan.format, 'pcap');
  for (const [flags, pattern] of [
    [{}, /-i PORT is missing/],
    [{ i: 'vale0:x', Q: 'up' }, /-Q up: must be/],
    [{ i: 'ptnet:1', Q: 'in' }, /-Q in: the host has chosen what ptnet:1 shows/],
    [{ i: 'vale0:x', C: '1' }, /-C is for files/],
    [{ i: 'vale0:x', w: 'f', W: '2' }, /-W FILES is for -C/],
    [{ i: 'vale0:x', s: '0' }, /-s 0/],
  ] as const) {
    assert.throws(() => parseDump(flags), pattern);
  }
});
