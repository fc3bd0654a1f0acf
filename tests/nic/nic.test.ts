/** Ports of interfaces over veth pairs between network namespaces: nothing is lost, changed or left behind (issue: NICs). */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { after, before, describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { NS_MOREFRAG } from '../../src/abi/index.ts';
import type { NetmapPort } from '../../src/api/index.ts';
import { openPort, POLLIN, POLLOUT } from '../../src/api/index.ts';
import { FrameCounter, writeFrame } from './nic-frames.ts';
import { NicLab, nicSkip } from './nic-lab.ts';

const long = process.env['PTNET_NET_LONG'] === '1';
const FRAMES = long ? 200_000 : 10_000;
/** Frames sent per millisecond where none may be lost. */
const PACE = 10;
/** Bytes per millisecond where frames are long. */
const PACE_BYTES = 20_000;
const paceOf = (bytes: number): number => Math.max(1, Math.min(PACE, Math.floor(PACE_BYTES / bytes)));
/** Room for what comes while the processes of a busy machine wait for each other. */
const slots = { txSlots: 4096, rxSlots: 4096 };

/** Takes frames, pieces put together, until `frames` of ours are there or nothing comes for `quietMs`. */
async function receive(port: NetmapPort, counter: FrameCounter, frames: number, quietMs = 2000): Promise<void> {
  const whole = new Uint8Array(65536);
  while (counter.frames < frames) {
    if ((await port.wait(POLLIN, { timeoutMs: quietMs })) === 0) return;
    for (const ring of port.rxRings) {
      let length = 0;
      while (ring.space() > 0) {
        const i = ring.head;
        const ofs = ring.bufOfs(i);
        whole.set(port.m.u8.subarray(ofs, ofs + ring.len(i)), length);
        length += ring.len(i);
        if ((ring.flags(i) & NS_MOREFRAG) === 0) {
          counter.add(whole, length);
          length = 0;
        }
        ring.head = ring.cur = ring.next(i);
      }
    }
    port.rxsync();
  }
}

/** Sends numbered frames at a pace. */
async function send(
  port: NetmapPort,
  count: number,
  bytes: number,
  vlan?: number,
  perMs = paceOf(bytes),
): Promise<void> {
  const ring = port.txRings[0]!;
  const whole = new Uint8Array(65536);
  const pieces = Math.ceil(bytes / port.bufSize);
  const start = performance.now();
  for (let n = 0; n < count; ) {
    const due = Math.min(count, Math.floor((performance.now() - start) * perMs) + 1);
    while (n < due && ring.space() >= pieces) {
      writeFrame(whole, bytes, n++, vlan);
      for (let at = 0; at < bytes; at += port.bufSize) {
        const i = ring.head;
        const part = whole.subarray(at, Math.min(bytes, at + port.bufSize));
        port.m.u8.set(part, ring.bufOfs(i));
        ring.setLen(i, part.length);
        ring.setFlags(i, at + port.bufSize < bytes ? NS_MOREFRAG : 0);
        ring.head = ring.cur = ring.next(i);
      }
    }
    port.txsync();
    if (ring.space() < pieces) await port.wait(POLLOUT, { timeoutMs: 1000 });
    else await sleep(1);
  }
  for (let i = 0; i < 200 && ring.space() < ring.numSlots - 1; i++) {
    await sleep(5);
    port.txsync();
  }
  assert.equal(ring.space(), ring.numSlots - 1, 'every slot comes back');
}

/** Frames both ways at a pace: all arrive, in order, whole. */
async function conserves(
  lab: NicLab,
  port: NetmapPort,
  bytes: number,
  { vlan, frames = FRAMES }: { vlan?: number; frames?: number } = {},
): Promise<void> {
  const tag = vlan === undefined ? [] : [String(vlan)];
  const counter = new FrameCounter(vlan);
  const sender = await lab.there
    .peer('send', 'veth1', String(frames), String(bytes), String(paceOf(bytes)), ...tag)
    .ready();
  await receive(port, counter, frames);
  await sender.result();
  const arrived = { frames: counter.frames, disorder: counter.disorder, wrong: counter.wrong, bytes: counter.bytes };
  assert.deepEqual(arrived, { frames, disorder: 0, wrong: 0, bytes: frames * bytes }, 'received');
  const receiver = await lab.there.peer('receive', 'veth1', ...tag).ready();
  await send(port, frames, bytes, vlan);
  await sleep(100);
  assert.deepEqual(await receiver.result('SIGINT'), { frames, disorder: 0, wrong: 0, bytes: frames * bytes }, 'sent');
}

describe('a NIC passed to one user', { skip: nicSkip() }, () => {
  let lab: NicLab;
  before(async () => {
    lab = new NicLab();
    await lab.start();
  });
  after(async () => {
    if (process.env['PTNET_TEST_LOG']) process.stderr.write(lab.log);
    await lab.close();
  });

  it('AF_XDP, native: numbered frames at a pace, both ways', async () => {
    const port = await openPort('netmap:veth0', { runDir: lab.runDir, ...slots });
    try {
      assert.equal((await lab.port('netmap:veth0')).interface?.mode, 'native');
      for (const bytes of [60, 333, 1514]) await conserves(lab, port, bytes);
      await conserves(lab, port, 200, { vlan: 0x2007 });
    } finally {
      await port.close();
    }
  });

  it('what the kernel drops is counted: as fast as the other end can send', async () => {
    const port = await openPort('netmap:veth0', { runDir: lab.runDir });
    try {
      const frames = 10 * FRAMES;
      const lostBefore = lab.lost();
      const counter = new FrameCounter();
      const sender = await lab.there.peer('send', 'veth1', String(frames), '60', '0').ready();
      await receive(port, counter, frames, 1000);
      await sender.result();
      await sleep(300);
      const { rxRings } = await lab.port('netmap:veth0');
      assert.equal(counter.wrong + counter.disorder, 0);
      const dropped = rxRings[0]!.drops['full'] ?? 0;
      assert.equal(counter.frames + dropped + lab.lost() - lostBefore, frames);
    } finally {
      await port.close();
    }
  });

  it('R19: a user that is killed leaves its buffers with the kernel; the next one gets whole frames', async () => {
    for (let i = 0; i < 3; i++) {
      const port = await openPort('netmap:veth0', { runDir: lab.runDir, ...slots });
      const sender = await lab.there.peer('send', 'veth1', '3000', '100', String(PACE)).ready();
      const counter = new FrameCounter();
      await receive(port, counter, 3000);
      await sender.result();
      assert.deepEqual([counter.frames, counter.wrong], [3000, 0]);
      await port.close();
    }
  });

  it('AF_XDP, generic, where the driver has no XDP: a bridge', async () => {
    lab.bridge();
    const port = await openPort('netmap:br0', { runDir: lab.runDir, ...slots });
    try {
      assert.equal((await lab.port('netmap:br0')).interface?.mode, 'generic');
      for (const bytes of [60, 1514]) await conserves(lab, port, bytes);
    } finally {
      await port.close();
      lab.here.ip('link', 'del', 'br0');
    }
  });

  it('packet sockets, where AF_XDP is not to be had: it says why, and VLAN tags are put back', async () => {
    const port = await openPort('netmap:veth0', { runDir: lab.runDir, bufSize: 4096, ...slots });
    try {
      const { interface: about } = await lab.port('netmap:veth0');
      assert.equal(about?.mode, 'packet');
      assert.match(about.because ?? '', /buffers of 1792 to 3840 bytes, these have 4096/);
      for (const bytes of [60, 1514]) await conserves(lab, port, bytes);
      await conserves(lab, port, 200, { vlan: 0x6123 });
    } finally {
      await port.close();
    }
  });
});

describe('a NIC with jumbo frames', { skip: nicSkip() }, () => {
  it('chains of slots, both ways', async () => {
    const lab = new NicLab(9000);
    try {
      await lab.start();
      const port = await openPort('netmap:veth0', { runDir: lab.runDir, ...slots });
      for (const bytes of [2048, 2049, 9014]) await conserves(lab, port, bytes, { frames: FRAMES / 4 });
      await port.close();
      const packets = await openPort('netmap:veth0', { runDir: lab.runDir, bufSize: 1024, ...slots });
      assert.equal((await lab.port('netmap:veth0')).interface?.mode, 'packet');
      for (const bytes of [1024, 9014]) await conserves(lab, packets, bytes, { frames: FRAMES / 4 });
      await packets.close();
    } finally {
      await lab.close();
    }
  });
});

/** What the daemon holds. */
function holdings(pid: number): { fds: number; maps: number } {
  const fds = readdirSync(`/proc/${pid}/fd`).length;
  return { fds, maps: readFileSync(`/proc/${pid}/maps`, 'utf8').split('\n').length };
}

describe('the interface and the daemon come and go', { skip: nicSkip('ping') }, () => {
  let lab: NicLab;
  before(async () => {
    lab = new NicLab();
    lab.here.ip('addr', 'add', '10.77.0.1/24', 'dev', 'veth0');
    lab.there.ip('addr', 'add', '10.77.0.2/24', 'dev', 'veth1');
    await lab.start();
  });
  after(async () => {
    if (process.env['PTNET_TEST_LOG']) process.stderr.write(lab.log);
    await lab.close();
  });

  const daemonPid = async (): Promise<number> =>
    (await import('../../src/api/index.ts')).listDaemon(lab.runDir).then((s) => s.pid);

  it('while the port is open the host gets nothing, afterwards everything', async () => {
    assert.ok(await lab.there.pings('10.77.0.1'));
    const port = await openPort('netmap:veth0', { runDir: lab.runDir, ...slots });
    assert.ok(!(await lab.there.pings('10.77.0.1')));
    await port.close();
    assert.ok(await lab.there.pings('10.77.0.1'));
  });

  it('open and close, again and again, leave nothing behind', async () => {
    const pid = await daemonPid();
    const cycles = long ? 1000 : 60;
    const cycle = async (): Promise<void> => {
      const port = await openPort('netmap:veth0', { runDir: lab.runDir, ...slots });
      await port.close();
    };
    for (let i = 0; i < 10; i++) await cycle();
    while ((await lab.ports()).length > 0) await sleep(20);
    const first = holdings(pid);
    for (let i = 0; i < cycles; i++) await cycle();
    while ((await lab.ports()).length > 0) await sleep(20);
    const now = holdings(pid);
    assert.ok(now.fds <= first.fds + 2 && now.maps <= first.maps + cycles / 2, JSON.stringify({ first, now }));
    assert.ok(await lab.there.pings('10.77.0.1'));
  });

  it('the daemon killed in traffic: the interface works for the host again', async () => {
    const port = await openPort('netmap:veth0', { runDir: lab.runDir, ...slots });
    const sender = await lab.there.peer('send', 'veth1', '20000', '60', '20').ready();
    await sleep(200);
    const ended = assert.rejects(async () => {
      for (;;) await receive(port, new FrameCounter(), 1e9, 5000);
    });
    await lab.end('SIGKILL');
    await ended;
    await port.close();
    await sender.result();
    assert.ok(!lab.here.ip('link', 'show', 'veth0').includes('xdp'));
    assert.ok(await lab.there.pings('10.77.0.1'));
    await lab.start();
  });

  it('the interface deleted in traffic: its port sends nowhere, counted, and the daemon goes on', async () => {
    const port = await openPort('netmap:veth0', { runDir: lab.runDir, ...slots });
    const sender = await lab.there.peer('send', 'veth1', '20000', '60', '10').ready();
    const sending = send(port, 20_000, 60);
    await sleep(100);
    lab.here.ip('link', 'del', 'veth0');
    await sending;
    await sender.result();
    await lab.logs('interface veth0 is gone');
    const status = await lab.port('netmap:veth0');
    assert.equal(status.interface?.gone, true);
    assert.ok((status.txRings[0]!.drops['stopped'] ?? 0) > 0);
    await port.close();
    lab.wire();
    const again = await openPort('netmap:veth0', { runDir: lab.runDir, ...slots });
    await conserves(lab, again, 100, { frames: 2000 });
    await again.close();
  });
});

describe('interfaces in a switch', { skip: nicSkip('ping', 'iperf3') }, () => {
  let lab: NicLab;
  before(async () => {
    lab = new NicLab();
    lab.there.ip('addr', 'add', '10.77.0.2/24', 'dev', 'veth1');
    await lab.start({ ports: slots });
  });
  after(() => lab.close());

  /** iperf3 from `there` to a server here, both ways. */
  async function iperf(address: string): Promise<void> {
    for (const direction of [[], ['-R']]) {
      const server = lab.here.run('iperf3', ['-s', '-1', '-B', address], 30);
      await sleep(500);
      const { status, text } = await lab.there.run('iperf3', ['-c', address, '-n', '20M', ...direction], 30);
      assert.equal(status, 0, text);
      await server;
    }
  }

  it('a stack beyond a TAP interface talks through the switch and the NIC: ping, iperf3, both ways', async () => {
    await lab.valeCtl('a', 'vale0:veth0');
    await lab.valeCtl('a', 'vale0:tap0');
    assert.equal((await lab.port('vale0:tap0')).vnetHdrLen, 12);
    lab.here.ip('addr', 'add', '10.77.0.1/24', 'dev', 'tap0');
    assert.ok(await lab.there.pings('10.77.0.1'));
    assert.ok(await lab.there.pings('10.77.0.1', '-s', '4000'));
    await iperf('10.77.0.1');
    await lab.valeCtl('d', 'vale0:tap0');
    await lab.valeCtl('d', 'vale0:veth0');
    assert.deepEqual(await lab.ports(), []);
    assert.throws(() => lab.here.ip('link', 'show', 'tap0'));
  });

  it('-h: the host talks through the switch; a port of the switch shares the wire; -d gives it back', async () => {
    lab.there.ip('neigh', 'flush', 'all');
    lab.here.ip('addr', 'add', '10.77.0.1/24', 'dev', 'veth0');
    assert.ok(await lab.there.pings('10.77.0.1'));
    await lab.valeCtl('h', 'vale0:veth0');
    assert.ok(await lab.there.pings('10.77.0.1'));
    await iperf('10.77.0.1');
    const port = await openPort('vale0:guest', { runDir: lab.runDir, ...slots });
    await conserves(lab, port, 300, { frames: 1000 });
    await port.close();
    await lab.valeCtl('d', 'vale0:veth0');
    assert.ok(await lab.there.pings('10.77.0.1'));
    assert.ok(!lab.here.ip('link').includes('ptnh'));
  });

  it('a firewall between the wire and the host: what it lets through arrives, what it stops does not', async () => {
    const wire = await openPort('netmap:veth0', { runDir: lab.runDir });
    const stack = await openPort('netmap:veth0^', { runDir: lab.runDir });
    let stopIcmp = false;
    const ended = new AbortController();
    const forward = async (from: NetmapPort, to: NetmapPort): Promise<void> => {
      while (!ended.signal.aborted) {
        await from.wait(POLLIN, { timeoutMs: 100 });
        const [rx, tx] = [from.rxRings[0]!, to.txRings[0]!];
        for (; rx.space() > 0 && tx.space() > 0; rx.head = rx.cur = rx.next(rx.head)) {
          const source = rx.bufOfs(rx.head);
          const frame = from.m.u8.subarray(source, source + rx.len(rx.head));
          // IPv4, protocol ICMP
          if (stopIcmp && frame[12] === 8 && frame[13] === 0 && frame[23] === 1) continue;
          to.m.u8.set(frame, tx.bufOfs(tx.head));
          tx.setLen(tx.head, frame.length);
          tx.head = tx.cur = tx.next(tx.head);
        }
        from.rxsync();
        to.txsync();
      }
    };
    const both = Promise.all([forward(wire, stack), forward(stack, wire)]);
    try {
      assert.ok(await lab.there.pings('10.77.0.1'));
      stopIcmp = true;
      assert.ok(!(await lab.there.pings('10.77.0.1')));
      await iperf('10.77.0.1');
      stopIcmp = false;
      assert.ok(await lab.there.pings('10.77.0.1'));
    } finally {
      ended.abort();
      await both;
      await wire.close();
      await stack.close();
    }
    assert.ok(await lab.there.pings('10.77.0.1'));
  });

  it('a TAP interface as a port of its own: the stack beyond it and a user exchange frames', async () => {
    const port = await openPort('netmap:tap7', { runDir: lab.runDir });
    try {
      const { interface: about } = await lab.port('netmap:tap7');
      assert.equal(about?.mode, 'tap');
      const receiver = await lab.here.peer('receive', 'tap7').ready();
      await send(port, 2000, 500);
      await sleep(100);
      assert.equal((await receiver.result('SIGINT'))['frames'], 2000);
      const counter = new FrameCounter();
      const sender = await lab.here.peer('send', 'tap7', '1000', '1514', '5').ready();
      await receive(port, counter, 1000);
      await sender.result();
      assert.deepEqual([counter.frames, counter.wrong], [1000, 0]);
    } finally {
      await port.close();
    }
    while ((await lab.ports()).length > 0) await sleep(20);
    assert.throws(() => lab.here.ip('link', 'show', 'tap7'));
  });

  it('what cannot be had is refused with its reason', async () => {
    const open = (name: string) => () => openPort(name, { runDir: lab.runDir });
    await assert.rejects(open('netmap:veth9'), /no interface veth9/);
    await assert.rejects(open('netmap:veth0*'), /netmap:veth0 and netmap:veth0\^/);
    await assert.rejects(open('netmap:veth0/R'), /go together/);
    await assert.rejects(lab.valeCtl('a', 'vale0:veth9'), /no interface veth9/);
    assert.deepEqual(await lab.ports(), []);
  });
});
