// netmap's applications as their users start them: on a daemon, between other processes.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { existsSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import { CaptureReader } from '../../src/cli/pcap/reader.ts';
import { CaptureWriter } from '../../src/cli/pcap/writer.ts';
import { PktGen, PtnetDaemon, PtnetProcess, ptnet, root, until } from './ptnet.ts';

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
  const { rtt } = await ping.result();
  assert.equal(rtt?.received, 500);
  await pong.end();
  assert.equal(await bridge.end(), 0);
  const [there, back] = [/vale0:x --> vale1:x: (\d+) packets/, /vale1:x --> vale0:x: (\d+) packets/];
  assert.equal(Number(there.exec(bridge.stdout)?.[1]), 500);
  assert.equal(Number(back.exec(bridge.stdout)?.[1]), 500);
});

test('bridge exchanges buffers without being asked, and copies where it must; txseq and rxseq see every packet in order', async () => {
  const ends = ['-i', 'netmap:in}1', '-i', 'netmap:out{1'];
  for (const [how, says] of [
    [[], /^zero copy/],
    [['-c'], /^copying: -c/],
  ] as const) {
    const bridge = new PtnetProcess(['bridge', '--run-dir', runDir, ...ends, ...how]);
    await bridge.says(/<->/);
    assert.match(bridge.stderr, says);
    const rx = await PktGen.start(runDir, 'netmap:out}1', ['-f', 'rxseq', '-n', '20000']);
    const tx = await PktGen.start(runDir, 'netmap:in{1', ['-f', 'txseq', '-n', '20000']);
    assert.equal((await tx.result()).packets, 20_000);
    const { packets, sequence } = await rx.result();
    assert.deepEqual([packets, sequence], [20_000, { gaps: 0, lost: 0, outOfOrder: 0, others: 0 }]);
    assert.equal(await bridge.end(), 0);
  }
  // The pipe lies in the region of the process that has its other end.
  const rx = await PktGen.start(runDir, 'netmap:there{1', ['-f', 'rx']);
  const bridge = new PtnetProcess(['bridge', '--run-dir', runDir, '-i', 'netmap:there}1', '-i', 'vale0:here']);
  await bridge.says(/<->/);
  assert.match(bridge.stderr, /^copying: the ports lie in two memory regions/);
  await bridge.end();
  await rx.end();
});

test('bridge, lb, nmreplay -w: a signal ends the waiting', async () => {
  const file = join(dir, 'w.pcapng');
  capture(file, 1);
  for (const [args, last] of [
    [['bridge', '-i', 'vale0:x', '-i', 'vale1:x'], /vale1:x --> vale0:x: 0 packets/],
    [['lb', '-i', 'vale0:x'], /^0 packets forwarded/],
    [['nmreplay', '-f', file, '-i', 'vale0:x'], /^Sent 0 packets/],
  ] as const) {
    const waiting = new PtnetProcess([...args, '--run-dir', runDir, '-w', '100']);
    await waiting.says(/waiting 100 s|extra buffers|1 packets from/);
    const begin = performance.now();
    assert.equal(await waiting.end('SIGTERM'), 0, waiting.stderr);
    assert.match(waiting.stdout, last);
    assert.ok(performance.now() - begin < 90_000, 'waited to the end');
  }
});

test('bridge, lb: what was passed on is said when a port goes, or the daemon', async () => {
  const other = await PtnetDaemon.start({ runDir: join(dir, 'other'), vms: {} });
  const { runDir: at } = other;
  const bridge = new PtnetProcess(['bridge', '--run-dir', at, '-i', 'vale0:x', '-i', 'vale1:x']);
  await bridge.says(/<->/);
  const rx = await PktGen.start(at, 'vale1:rx', ['-f', 'rx']);
  const lb = new PtnetProcess(['lb', '--run-dir', at, '-i', 'vale1:rx/r', '-p', 'ids:1', '-o', '1']);
  await lb.says(/extra buffers/);
  const tx = await PktGen.start(at, 'vale0:tx', ['-f', 'tx', '-n', '100']);
  await tx.result();
  await lb.says(/"packets_received":100,/);
  // A monitor goes with the port that it shows.
  await rx.end();
  assert.equal(await lb.exited, 1);
  assert.match(lb.stdout, /\n100 packets forwarded\. {2}0 packets dropped\. Total 100\n$/);
  assert.match(lb.stderr, /ENODEV\n$/);
  assert.equal(await other.end('SIGTERM'), 0);
  assert.equal(await bridge.exited, 1);
  assert.match(bridge.stdout, /^vale0:x --> vale1:x: 100 packets 6000 bytes\nvale1:x --> vale0:x: 0 packets/);
  assert.match(bridge.stderr, /ENODEV\n$/);
});

test('bridge -L: an echo', async () => {
  const echo = new PtnetProcess(['bridge', '--run-dir', runDir, '-L', '-i', 'vale0:echo']);
  await echo.says(/back to itself/);
  // Each as it was sent, and once more as it came back.
  const rx = await PktGen.start(runDir, 'vale0:rx', ['-f', 'rx', '-n', '200']);
  const tx = await PktGen.start(runDir, 'vale0:tx', ['-f', 'tx', '-n', '100', '-R', '1000', '-S', '02:00:00:00:00:78']);
  await tx.result();
  await rx.result();
  await echo.end();
  assert.match(echo.stdout, /: 100 packets 6000 bytes\n/);
});

test('nmreplay sends a capture with its timing; pkt-gen -P its first packet', async () => {
  const file = join(dir, 'a.pcapng');
  capture(file, 200);
  const rx = await PktGen.start(runDir, 'vale0:rx', ['-f', 'rx', '-n', '210']);
  const { code, stdout } = await ptnet([
    'nmreplay',
    '--run-dir',
    runDir,
    '-f',
    file,
    '-i',
    'vale0:tx',
    '--loops',
    '1',
    '-C',
    '0',
  ]);
  assert.equal(code, 0);
  const [, packets, bytes, seconds] = /Sent (\d+) packets (\d+) bytes in ([\d.]+) seconds/.exec(stdout) ?? [];
  assert.deepEqual([packets, bytes], ['200', '20000']);
  assert.ok(Number(seconds) >= 0.199, stdout);
  const tx = await ptnet(['pkt-gen', '--run-dir', runDir, '-i', 'vale0:tx', '-f', 'tx', '-n', '10', '-P', file]);
  assert.match(tx.stdout, /Sent 10 packets 1000 bytes/);
  const result = await rx.result();
  assert.deepEqual([result.packets, result.bytes], [210, 21_000]);
  const wrong = await ptnet(['nmreplay', '-f', file, '-i', 'vale0:tx', '-C', '1,2,3']);
  assert.deepEqual([wrong.code, wrong.stderr], [2, 'ptnet: -C 1,2,3: must be 1, 2 or 4 CPUs, e.g. -C 2\n']);
  const none = await ptnet(['nmreplay', '--run-dir', runDir, '-f', join(dir, 'none'), '-i', 'vale0:tx']);
  assert.deepEqual([none.code, /^ptnet: .*none: .*ENOENT/.test(none.stderr)], [1, true]);
});

test('dump: both directions of a port while pings pass, to a file and to a pipe', async () => {
  const file = join(dir, 'ping.pcapng');
  const pong = await PktGen.start(runDir, 'vale3:pong', ['-f', 'pong']);
  const dump = new PtnetProcess(['dump', '--run-dir', runDir, '-i', 'vale3:pong', '-w', file, '-c', '40']);
  await dump.says(/listening on vale3:pong\/rt/);
  const ping = await PktGen.start(runDir, 'vale3:ping', ['-f', 'ping', '-n', '20']);
  assert.equal((await ping.result()).rtt?.received, 20);
  assert.equal(await dump.exited, 0);
  assert.match(dump.stderr, /40 packets captured\n0 packets lost\n/);
  await pong.end();
  const reader = new CaptureReader(file);
  const macs: string[] = [];
  while (reader.next()) macs.push(Buffer.from(reader.data.slice(0, 6)).toString('hex'));
  reader.close();
  assert.equal(macs.filter((mac) => mac === 'ffffffffffff').length, 20, 'pings go to all');
  assert.equal(new Set(macs).size, 2);
  const none = await ptnet(['dump', '--run-dir', runDir, '-i', 'vale3:none', '-w', file]);
  assert.deepEqual([none.code, /no port vale3:none to be monitored/.test(none.stderr)], [1, true]);
});

test('a reader that has seen enough ends a program without a word: pkt-gen -X | head', async () => {
  const tx = new PtnetProcess(['pkt-gen', '--run-dir', runDir, '-i', 'vale5:x', '-f', 'tx', '-X']);
  await tx.says(/ring 0 cur/);
  tx.child.stdout!.destroy();
  assert.equal(await tx.exited, 141);
  assert.doesNotMatch(tx.stderr, /EPIPE/);
});

test('dump: a reader that takes nothing keeps no signal from being heard', async () => {
  const rx = await PktGen.start(runDir, 'vale3:stalled', ['-f', 'rx', '-n', '2000']);
  const dump = new PtnetProcess(['dump', '--run-dir', runDir, '-i', 'vale3:stalled/r']);
  await dump.says(/listening on/);
  dump.child.stdout!.pause();
  // More than a pipe and dump's buffer take.
  const tx = await PktGen.start(runDir, 'vale3:tx', ['-f', 'tx', '-n', '2000', '-l', '1500', '-R', '5000']);
  await tx.result();
  await rx.result();
  dump.child.kill('SIGTERM');
  // The second signal ends it at once. Had it not heard the first, neither would.
  const again = setInterval(() => dump.child.kill('SIGTERM'), 1000);
  const died = await Promise.race([once(dump.child, 'exit'), setTimeout(60_000)]);
  clearInterval(again);
  assert.deepEqual(died, [null, 'SIGTERM']);
  dump.child.stdout!.resume();
  await dump.exited;
});

test('dump: what was captured is in the file when the port goes, and what was lost is said', async () => {
  const file = join(dir, 'gone.pcap');
  const rx = await PktGen.start(runDir, 'vale3:gone', ['-f', 'rx']);
  const slow = ['dump', '--run-dir', runDir, '-i', 'vale3:gone/r@conf:rx-slots=4', '-w', file];
  const dump = new PtnetProcess(slow);
  await dump.says(/listening on/);
  const tx = await PktGen.start(runDir, 'vale3:tx', ['-f', 'tx', '-n', '5000', '-b', '500']);
  await tx.result();
  await until('packets are in the file', () => existsSync(file) && statSync(file).size > 60);
  await rx.end();
  assert.equal(await dump.exited, 1);
  assert.match(dump.stderr, /ENODEV\n$/);
  const [, captured] = /(\d+) packets captured\n/.exec(dump.stderr) ?? [];
  const reader = new CaptureReader(file);
  let packets = 0;
  while (reader.next()) packets += 1;
  reader.close();
  assert.equal(packets, Number(captured));
  assert.ok(packets > 0);
});

test('lb: a connection goes to one pipe of each group, and the second group gets what the first has read', async () => {
  // The input's ring and the extra buffers have room for all packets, however slow a machine is.
  const input = 'vale4:in@conf:rx-slots=4096';
  const lb = new PtnetProcess([
    'lb',
    '--run-dir',
    runDir,
    '-i',
    input,
    '-p',
    'ids:2',
    '-p',
    'log:1',
    '-B',
    '8000',
    '-o',
    '1',
    '-s',
    '1',
  ]);
  await lb.says(/8000 extra buffers/);
  const ids = [
    await PktGen.start(runDir, 'netmap:ids}0', ['-f', 'rx']),
    await PktGen.start(runDir, 'netmap:ids}1', ['-f', 'rx']),
  ];
  const log = await PktGen.start(runDir, 'netmap:log}0', ['-f', 'rx', '-n', '3200']);
  const from = '10.0.0.1:1000-10.0.0.1:1063';
  const tx = await PktGen.start(runDir, 'vale4:out', ['-f', 'tx', '-n', '3200', '-s', from]);
  await tx.result();
  assert.equal((await log.result()).packets, 3200);
  const [a, b] = (await Promise.all(ids.map((r) => r.result(0)))).map((r) => r.packets);
  const all = /\{.*"output_ring":null,"packets_received":3200,"packets_forwarded":6400,"packets_dropped":0,.*\}/;
  await until('both statistics', () => all.test(lb.stdout) && all.test(lb.stderr));
  assert.equal(await lb.end(), 0);
  const lines = lb.stdout.split('\n').filter((line) => all.test(line));
  assert.deepEqual(
    Object.keys(JSON.parse(lines[0]!) as object).filter((key) => key.includes('rate')),
    ['data_forward_rate_Mbps', 'data_drop_rate_Mbps', 'packet_forward_rate_kpps', 'packet_drop_rate_kpps'],
  );
  assert.ok(
    lb.stderr.split('\n').some((line) => all.test(line) && line.includes('"msg":"lb"')),
    'the log has it, too',
  );
  assert.equal(a! + b!, 3200);
  assert.equal(a! % 50, 0, 'all packets of a connection');
  assert.ok(a! > 500 && b! > 500);
  assert.match(lb.stdout, /6400 packets forwarded. {2}0 packets dropped/);
});

test('pkt-gen -p: threads, each on one pair of rings', async () => {
  const rx = await PktGen.start(runDir, 'vale6:rx@conf:rx-slots=4096', ['-f', 'rx', '-n', '3001']);
  const job = ['-f', 'tx', '-n', '3001', '-p', '3', '--json'];
  const { code, stdout } = await ptnet(['pkt-gen', '--run-dir', runDir, '-i', 'vale6:tx', ...job]);
  assert.equal(code, 0);
  assert.equal((JSON.parse(stdout) as { packets: number }).packets, 3001);
  assert.equal((await rx.result()).packets, 3001);
});

test('pkt-gen -p: a thread that fails, or ends before its work is done, is an error', async () => {
  const job = ['pkt-gen', '--run-dir', runDir, '-i', 'vale7:tx', '-f', 'tx', '-p', '2'];
  const held = await PktGen.start(runDir, 'vale7:tx', ['-f', 'rx']);
  const refused = await ptnet(job);
  assert.deepEqual([refused.code, refused.stdout], [1, '']);
  assert.match(refused.stderr, /^ptnet: open vale7:tx-.*\n$/, 'a line, no stack');
  await held.end();
  const file = join(dir, 'fault');
  const inject = [
    `NODE_OPTIONS=--import ${join(root, 'tests/holds/inject.mjs')}`,
    'PTNET_FAULT=generator:exit',
    `PTNET_FAULT_FILE=${file}`,
  ];
  const tx = new PtnetProcess([...job, '-R', '1000'], ['env', ...inject]);
  await tx.says(/2 queues, 2 threads/);
  writeFileSync(file, '');
  assert.equal(await tx.exited, 1);
  assert.match(tx.stderr, /^ptnet: thread [01] ended before its work was done \(status 0\)\n$/m);
});
