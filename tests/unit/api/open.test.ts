/** openPort and the control client, on a daemon in this process and on sockets that misbehave. */
import assert from 'node:assert/strict';
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import { CONTROL_SOCKET } from '../../../src/abi/index.ts';
import type { NetmapPort } from '../../../src/api/index.ts';
import {
  controlRequest,
  listDaemon,
  openDevice,
  openPort,
  POLLIN,
  POLLOUT,
  stopDaemon,
} from '../../../src/api/index.ts';
import { defaultConfig } from '../../../src/host/config.ts';
import { type Daemon, startDaemon } from '../../../src/host/daemon.ts';
import { acceptUnix, closeFd, listenUnix, MessageSocket, socketPair } from '../../../src/os/index.ts';

let dir: string;
let runDir: string;
let daemon: Daemon;

const start = (): Promise<Daemon> =>
  startDaemon(
    { ...defaultConfig(), runDir, logLevel: 'silent', vms: { vm: { ports: ['vale9:v'], trustUnsealedMemory: false } } },
    'test',
  );

before(async () => {
  dir = mkdtempSync(join(tmpdir(), 'ptnet-api-'));
  runDir = join(dir, 'run');
  daemon = await start();
});

after(async () => {
  await daemon.stop('test over');
  rmSync(dir, { recursive: true, force: true });
});

/** Sends copies of a frame as fast as there is room; returns when all are handed over. */
function sendAll(port: NetmapPort, frame: Uint8Array, count: number): void {
  const ring = port.txRings[0]!;
  for (let sent = 0; sent < count; ) {
    assert.notEqual(port.poll(POLLOUT, 5000), 0);
    for (; sent < count && ring.head !== ring.tail; ring.head = ring.cur = ring.next(ring.head), sent++) {
      port.m.u8.set(frame, ring.bufOfs(ring.head));
      ring.setLen(ring.head, frame.length);
    }
  }
  port.txsync();
}

const bytesOf = (mac: string): number[] => mac.split(':').map((x) => Number.parseInt(x, 16));

test('two ports of a switch: packets, names, sizes; closing removes the port', async () => {
  const a = await openPort('vale0:a', { runDir, txSlots: 256, rxSlots: 256, txRings: 2, rxRings: 2, bufSize: 1024 });
  const b = await openPort('vale0:b', { runDir });
  assert.deepEqual([a.name, a.txRings.length, a.rxRings.length, a.txRings[1]!.numSlots], ['vale0:a', 2, 2, 256]);
  assert.deepEqual([a.bufSize, b.bufSize, b.txRings[0]!.numSlots, b.vnetHdrLen], [1024, 2112, 1024, 0]);
  const frame = Uint8Array.from([
    ...bytesOf(b.mac),
    ...bytesOf(a.mac),
    0x88,
    0xb5,
    ...Array.from({ length: 46 }, () => 7),
  ]);
  sendAll(a, frame, 500);
  for (let got = 0; got < 500; ) {
    assert.equal(await b.wait(POLLIN, { timeoutMs: 5000 }), POLLIN);
    const ring = b.rxRings[0]!;
    got += ring.space();
    assert.deepEqual(b.m.u8.slice(ring.bufOfs(ring.head), ring.bufOfs(ring.head) + ring.len(ring.head)), frame);
    ring.head = ring.cur = ring.tail;
  }
  const { domains, pid } = await listDaemon(runDir);
  assert.equal(pid, process.pid);
  const names = domains.find((d) => d.name === 'vale0')!.ports.map((p) => [p.name, p.running]);
  assert.deepEqual(names.sort(), [
    ['vale0:a', true],
    ['vale0:b', true],
  ]);
  await a.close();
  await b.close();
  await eventually(async () => (await listDaemon(runDir)).domains.every((d) => d.name !== 'vale0'));
});

test('openDevice drives the devices of a VM', async () => {
  const [memdev, ptnet] = (await listDaemon(runDir)).vms[0]!.sockets;
  const port = await openDevice(memdev!, ptnet!);
  assert.equal(port.txRings[0]!.space(), 1023);
  await port.close();
});

test('openDevice takes over both descriptors, also when the first device is gone already', async () => {
  const [memdev, memdevPeer] = socketPair();
  const [ptnet, ptnetPeer] = socketPair();
  closeFd(memdevPeer);
  await assert.rejects(openDevice(memdev, ptnet), { errno: 104 });
  assert.equal(new MessageSocket(ptnetPeer).receive(new Uint8Array(1)).ended, true);
  closeFd(ptnetPeer);
});

test('opening and closing leaves no descriptor and no address space behind', async () => {
  const open = async (): Promise<void> => {
    const port = await openPort('vale1:x', { runDir });
    await port.wait(POLLIN, { timeoutMs: 1 });
    await port.close();
  };
  const ports = async (): Promise<number> => (await listDaemon(runDir)).domains.flatMap((d) => d.ports).length;
  await open();
  await eventually(async () => (await ports()) === 1);
  const count = readdirSync('/proc/self/fd').length;
  for (let i = 0; i < 5; i++) await open();
  await eventually(async () => (await ports()) === 1);
  // The daemon, in this process too, closes its end of a connection a moment after this end.
  await eventually(async () => readdirSync('/proc/self/fd').length <= count);
});

test('errors say what to do', async () => {
  const nowhere = join(dir, 'nowhere');
  await assert.rejects(openPort('vale0:a', { runDir: nowhere }), {
    code: 'ENOENT',
    message: new RegExp(`no ptnet daemon runs in ${nowhere}: start one with "ptnet host"`),
  });
  await assert.rejects(listDaemon(nowhere), /no ptnet daemon runs/);
  await assert.rejects(openPort('vale0:a', { runDir, bufSize: 77 }), { code: 'EINVAL', message: /multiple of 64/ });
  const first = await openPort('vale0:a', { runDir });
  await assert.rejects(openPort('vale0:a', { runDir }), { code: 'EBUSY' });
  await first.close();
});

test('a process that is killed takes its port with it', async () => {
  const child = fork(new URL('open-child.js', import.meta.url), [runDir]);
  await once(child, 'message');
  const has = async (): Promise<boolean> =>
    (await listDaemon(runDir)).domains.some((d) => d.ports.some((p) => p.name === 'vale2:child'));
  assert.equal(await has(), true);
  child.kill('SIGKILL');
  await eventually(async () => !(await has()));
});

test('a daemon that ends ends poll and wait with an error', async () => {
  const port = await openPort('vale0:a', { runDir });
  const waiting = assert.rejects(port.wait(POLLIN), /the daemon of port vale0:a is gone/);
  await stopDaemon(runDir);
  await daemon.exited;
  await waiting;
  assert.throws(() => port.poll(POLLIN, -1), { code: 'ENODEV' });
  await port.close();
  // The lock on a run directory goes with the process, so the next daemon of this one needs another.
  runDir = join(dir, 'run2');
  daemon = await start();
});

for (const [what, answer, pattern] of [
  ['ends the connection', undefined, /ended the connection before it answered/],
  ['answers no JSON', 'hello\n', /answered no JSON: hello/],
  ['answers another request', '{"ok":true,"op":"stop"}\n', /answered "stop"/],
  ['refuses', '{"ok":false,"error":"user 5 may not: EPERM","errno":"EPERM"}\n', /^SysError: user 5 may not: EPERM$/],
  ['sends no descriptors', '{"ok":true,"op":"open","port":"vale0:a"}\n', /sent 0 descriptors for port vale0:a, not 2/],
] as const) {
  test(`a control socket that ${what}`, async () => {
    const fake = mkdtempSync(join(dir, 'fake-'));
    const listener = listenUnix(join(fake, CONTROL_SOCKET));
    const opening = assert.rejects(
      what === 'sends no descriptors' || what === 'refuses'
        ? openPort('vale0:a', { runDir: fake })
        : controlRequest(fake, { op: 'list' }),
      pattern,
    );
    const server = acceptUnix(listener);
    if (answer !== undefined) new MessageSocket(server).send(Uint8Array.from(Buffer.from(answer)));
    else closeFd(server);
    await opening;
    if (answer !== undefined) closeFd(server);
    closeFd(listener);
  });
}

async function eventually(holds: () => Promise<boolean>): Promise<void> {
  for (let i = 0; i < 500; i++) {
    if (await holds()) return;
    await setTimeout(10);
  }
  assert.fail('it did not happen within 5 s');
}
