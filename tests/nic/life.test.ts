/** Interfaces, the daemon and users of ports come and go: everything is as it was, and who has to know is told. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { afterEach, beforeEach, describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { listDaemon, openPort, POLLIN } from '../../src/api/index.ts';
import { FrameCounter, frameNumber } from './nic-frames.ts';
import { NicLab, nicSkip } from './nic-lab.ts';
import { conserves, long, QUIET_MS, receive, send } from './nic-traffic.ts';

/** What the daemon holds: descriptors, mappings of memory files and sockets, room in its arenas. V8's own mappings come and go. */
async function holdings(lab: NicLab): Promise<{ fds: number; maps: number; free: number }> {
  const { pid, arenas } = await listDaemon(lab.runDir);
  const fds = readdirSync(`/proc/${pid}/fd`).length;
  const maps = readFileSync(`/proc/${pid}/maps`, 'utf8').split('\n');
  const held = maps.filter((line) => /memfd:|socket:/.test(line)).length;
  return { fds, maps: held, free: arenas.reduce((sum, { freeBytes }) => sum + freeBytes, 0) };
}

const told = /^port netmap:veth0: interface veth0 is gone: ENODEV$/;

describe('the interface and the daemon come and go', { skip: nicSkip('ping') }, () => {
  let lab: NicLab;
  // Each has its own: a test that fails may have left the wire cut.
  beforeEach(async () => {
    lab = new NicLab();
    lab.addresses();
    await lab.start();
  });
  afterEach(() => lab.close());

  it('while the port is open the host gets nothing, afterwards everything', async () => {
    assert.ok(await lab.there.pings('10.77.0.1'));
    const port = await openPort('netmap:veth0', { runDir: lab.runDir });
    assert.ok(await lab.there.silent('10.77.0.1'));
    await port.close();
    assert.ok(await lab.there.pings('10.77.0.1'));
  });

  it(`open and close, ${long ? 1000 : 50} times, leave nothing behind`, async () => {
    const cycles = long ? 1000 : 50;
    const cycle = async (): Promise<void> => {
      const port = await openPort('netmap:veth0', { runDir: lab.runDir });
      await port.close();
    };
    const rest = async (): Promise<Awaited<ReturnType<typeof holdings>>> => {
      await lab.givenBack();
      return holdings(lab);
    };
    for (let i = 0; i < 10; i++) await cycle();
    const first = await rest();
    for (let i = 0; i < cycles; i++) await cycle();
    const now = await rest();
    assert.ok(now.fds <= first.fds + 2, JSON.stringify([first, now]));
    assert.deepEqual([now.maps, now.free], [first.maps, first.free]);
    assert.ok(await lab.there.pings('10.77.0.1'));
  });

  it('a daemon without a descriptor left, wherever in opening that is: an error, and nothing is left behind', {
    skip: nicSkip('prlimit'),
  }, async () => {
    const pid = String(lab.daemon!.pid);
    const prlimit = (...args: string[]): string =>
      execFileSync('prlimit', ['--pid', pid, ...args], { encoding: 'utf8' });
    const most = prlimit('--nofile', '--output', 'SOFT', '--noheadings').trim();
    const first = await openPort('netmap:veth0*', { runDir: lab.runDir });
    await first.close();
    await lab.givenBack();
    const before = await holdings(lab);
    let refused = 0;
    for (let more = 1; ; more++) {
      prlimit(`--nofile=${before.fds + more}:`);
      const open = openPort('netmap:veth0*', { runDir: lab.runDir });
      const port = await open.catch((e: Error) => e).finally(() => prlimit(`--nofile=${most}:`));
      if (!(port instanceof Error)) {
        await port.close();
        break;
      }
      refused++;
      assert.doesNotMatch(port.message, /EMFILE: /, 'the errno is its own');
      const end = performance.now() + QUIET_MS;
      while ((await lab.ports()).length > 0 && performance.now() < end) await sleep(10);
      assert.deepEqual(await lab.ports(), [], port.message);
      await lab.givenBack();
      const now = await holdings(lab);
      assert.ok(now.fds <= before.fds + 2, `${port.message}: ${JSON.stringify([before, now])}`);
      assert.deepEqual([now.maps, now.free], [before.maps, before.free], port.message);
    }
    assert.ok(refused > 5);
    await lab.givenBack();
    assert.ok(await lab.there.pings('10.77.0.1'));
  });

  it('the daemon killed in traffic: the interface works for the host again', async () => {
    const port = await openPort('netmap:veth0', { runDir: lab.runDir });
    const sender = await lab.there.peer('send', 'veth1', '200000', '60', '0').ready();
    const ended = assert.rejects(async () => {
      for (;;) await receive(port, new FrameCounter(), 1e9);
    }, /the daemon of port netmap:veth0 is gone/);
    await lab.end('SIGKILL');
    await ended;
    await port.close();
    await sender.result();
    await lab.untouched();
    assert.ok(await lab.there.pings('10.77.0.1'));
  });

  it('the interface deleted in traffic: its user is told, the daemon goes on, the interface can be had again', async () => {
    const port = await openPort('netmap:veth0', { runDir: lab.runDir });
    const sender = await lab.there.peer('send', 'veth1', '1000000', '60', '0').ready();
    const sending = assert.rejects(send(port, 1e9, 60), { message: told });
    const receiving = assert.rejects(receive(port, new FrameCounter(), 1e9), { message: told });
    lab.here.ip('link', 'del', 'veth0');
    await sending;
    await receiving;
    await sender.result();
    await lab.logs('interface veth0 is gone, and its port with it');
    lab.wire();
    const again = await openPort('netmap:veth0', { runDir: lab.runDir });
    await port.close();
    await conserves(lab, again, 100, { frames: 2000 });
    await again.close();
  });

  it('R19: the interface deleted while its user is busy: what he has is as it was, and the next call says why', async () => {
    const port = await openPort('netmap:veth0', { runDir: lab.runDir });
    const [tx, rx] = [port.txRings[0]!, port.rxRings[0]!];
    const sender = await lab.there.peer('send', 'veth1', '20', '60', '0').ready();
    await sender.result();
    while (rx.space() < 20) await port.wait(POLLIN);
    for (let i = 0; i < tx.numSlots; i++) tx.setLen(i, 60 + i);
    const buffers = Array.from({ length: tx.numSlots }, (_, i) => tx.bufIdx(i));
    tx.head = tx.cur = 700;
    lab.here.ip('link', 'del', 'veth0');
    await lab.logs('netmap:veth0: rings stopped');
    while ((await lab.ports()).some((p) => p.attached)) await sleep(10);
    assert.equal(tx.head, 700);
    for (let i = 0; i < tx.numSlots; i++) assert.deepEqual([tx.len(i), tx.bufIdx(i)], [60 + i, buffers[i]]);
    for (let i = 0; i < 20; i++) assert.equal(frameNumber(port.m.u8.subarray(rx.bufOfs(i)), rx.len(i)), i);
    assert.throws(() => port.txsync(), { message: told });
    await port.close();
  });

  it('the interface deleted, and its user never waits nor polls: he is told all the same', async () => {
    const port = await openPort('netmap:veth0', { runDir: lab.runDir });
    lab.here.ip('link', 'del', 'veth0');
    for (const sync of [() => port.txsync(), () => port.rxsync()]) {
      const end = performance.now() + 60_000;
      const forEver = (): void => {
        while (performance.now() < end) sync();
      };
      assert.throws(forEver, { message: told });
    }
    await port.close();
  });

  it("a VM's device stays when its interface is gone; another user can have the one that comes back", async () => {
    await lab.end();
    await lab.start({ vms: { fw: { ports: ['netmap:veth0'] } } });
    lab.here.ip('link', 'del', 'veth0');
    await lab.logs('interface veth0 is gone');
    assert.equal((await lab.port('netmap:veth0')).interface?.gone, true);
    lab.wire();
    const port = await openPort('netmap:veth0', { runDir: lab.runDir });
    await conserves(lab, port, 100, { frames: 1000 });
    await port.close();
  });

  it('an interface of a switch that is deleted leaves the switch, and can be attached again', async () => {
    await lab.valeCtl('h', 'vale0:veth0');
    lab.here.ip('link', 'del', 'veth0');
    await lab.givenBack();
    lab.wire();
    lab.addresses();
    await lab.valeCtl('h', 'vale0:veth0');
    assert.ok(await lab.there.pings('10.77.0.1'));
    await lab.valeCtl('d', 'vale0:veth0');
  });
});
