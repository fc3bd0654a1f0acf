// netmap's applications as their users start them: on a daemon, between other processes.

import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { CaptureWriter } from '../../src/cli/pcap/writer.ts';
import { PktGen, PtnetDaemon, PtnetProcess, ptnet } from './ptnet.ts';

const dir = mkdtempSync(join(tmpdir(), 'ptnet-apps-'));
const runDir = join(dir, 'run');
let daemon: PtnetDaemon;
before(async () => {
  daemon = await PtnetDaemon.start({ runDir, vms: {} });
});
after(async () => {
  await daemon.end();
  rmSync(dir, { recursive: true });
});

/** A capture of `count` packets, a millisecond apart, from 02:00:00:00:00:77 to all. */
function capture(path: string, count: number): void {
  const writer = new CaptureWriter(path, 'pcapng', 65535, 'x');
  const packet = Uint8Array.from({ length: 100 }, (_, i) => (i < 6 ? 255 : ([2, 0, 0, 0, 0, 0x77][i - 6] ?? i)));
  for (let i = 0; i < count; i++) {
    writer.begin(1000, i * 1_000_000, 0);
    writer.add(packet, 0, packet.length);
    writer.end();
  }
  writer.close();
}

test('bridge joins two switches: every ping is answered through it', async () => {
  const bridge = new PtnetProcess(['bridge', '--run-dir', runDir, '-i', 'vale0:x', '-i', 'vale1:x']);
  await bridge.says(/<->/);
  const pong = await PktGen.start(runDir, 'vale1:pong', ['-f', 'pong']);
  const ping = await PktGen.start(runDir, 'vale0:ping', ['-f', 'ping', '-n', '500']);
  const { rtt } = await ping.result(30_000);
  assert.equal(rtt?.received, 500);
  await pong.end();
  assert.equal(await bridge.end(), 0);
  const [there, back] = [/vale0:x --> vale1:x: (\d+) packets/, /vale1:x --> vale0:x: (\d+) packets/];
  assert.equal(Number(there.exec(bridge.stdout)?.[1]), 500);
  assert.equal(Number(back.exec(bridge.stdout)?.[1]), 500);
});

test('bridge -L: an echo', async () => {
  const echo = new PtnetProcess(['bridge', '--run-dir', runDir, '-L', '-i', 'vale0:echo']);
  await echo.says(/back to itself/);
  const rx = await PktGen.start(runDir, 'vale0:rx', ['-f', 'rx', '-n', '100']);
  const tx = await PktGen.start(runDir, 'vale0:tx', ['-f', 'tx', '-n', '100', '-R', '1000', '-S', '02:00:00:00:00:78']);
  await tx.result(30_000);
  await rx.result(30_000);
  await echo.end();
  assert.match(echo.stdout, /: 100 packets 6000 bytes\n/);
});

test('nmreplay sends a capture with its timing; pkt-gen -P its first packet', async () => {
  const file = join(dir, 'a.pcapng');
  capture(file, 200);
  const rx = await PktGen.start(runDir, 'vale0:rx', ['-f', 'rx', '-n', '210']);
  const { code, stdout } = await ptnet(['nmreplay', '--run-dir', runDir, '-f', file, '-i', 'vale0:tx', '--loops', '1']);
  assert.equal(code, 0);
  const [, packets, bytes, seconds] = /Sent (\d+) packets (\d+) bytes in ([\d.]+) seconds/.exec(stdout) ?? [];
  assert.deepEqual([packets, bytes], ['200', '20000']);
  assert.ok(Number(seconds) >= 0.199, stdout);
  const tx = await ptnet(['pkt-gen', '--run-dir', runDir, '-i', 'vale0:tx', '-f', 'tx', '-n', '10', '-P', file]);
  assert.match(tx.stdout, /Sent 10 packets 1000 bytes/);
  const result = await rx.result(30_000);
  assert.deepEqual([result.packets, result.bytes], [210, 21_000]);
  const none = await ptnet(['nmreplay', '--run-dir', runDir, '-f', join(dir, 'none'), '-i', 'vale0:tx']);
  assert.deepEqual([none.code, /^ptnet: ENOENT: .*none/.test(none.stderr)], [1, true]);
});
