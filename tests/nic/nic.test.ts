/** Ports of interfaces over veth pairs between network namespaces: nothing is lost, changed or left behind (docs/nics.md). */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { after, before, describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { listDaemon, openPort, POLLIN } from '../../src/api/index.ts';
import { HUGE_PAGE } from '../../src/os/index.ts';
import { borrowHugePages } from '../unit/memory/huge-pages.ts';
import { FrameCounter, writeFrame } from './nic-frames.ts';
import { NicLab, nicSkip } from './nic-lab.ts';
import { arrival, conserves, FRAMES, QUIET_MS, receive } from './nic-traffic.ts';

const huge = await borrowHugePages(8);
after(() => huge.giveBack());

/** CPU time that a process has used, all threads, ms. */
function cpuMs(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return 10 * (Number(fields[11]) + Number(fields[12]));
}

describe('a NIC whose region lies on huge pages', { skip: nicSkip() || huge.skip }, () => {
  it('AF_XDP, native: they are the socket’s memory; numbered frames, both ways', async () => {
    const lab = new NicLab();
    try {
      await lab.start({ ports: { hugePages: true } });
      const port = await openPort('netmap:veth0', { runDir: lab.runDir });
      const { mode, zeroCopy, because } = (await lab.port('netmap:veth0')).interface!;
      assert.deepEqual([mode, zeroCopy], ['native', false]);
      assert.equal(because, 'the driver veth refuses zero copy: ENOTSUP');
      await lab.logs(
        'interface veth0: AF_XDP, native, copy mode, 1 queues (the driver veth refuses zero copy: ENOTSUP)',
      );
      assert.equal((await listDaemon(lab.runDir)).regions[0]?.pageBytes, HUGE_PAGE);
      for (const bytes of [60, 1514]) await conserves(lab, port, bytes);
      await port.close();
    } finally {
      await lab.close();
    }
  });
});

describe('a NIC passed to one user', { skip: nicSkip() }, () => {
  let lab: NicLab;
  before(async () => {
    lab = new NicLab();
    await lab.start();
  });
  after(() => lab.close());

  it('AF_XDP, native: numbered frames, both ways', async () => {
    const port = await openPort('netmap:veth0', { runDir: lab.runDir });
    try {
      const { mode, zeroCopy, because } = (await lab.port('netmap:veth0')).interface!;
      assert.deepEqual([mode, zeroCopy], ['native', false]);
      assert.match(because!, /^its region lies on ordinary pages/);
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
      const sent = sender.result();
      await Promise.race([sent, receive(port, counter, frames)]);
      await sent;
      // What was on its way, until all are accounted for.
      let all = 0;
      for (const end = performance.now() + QUIET_MS; all !== frames && performance.now() < end; ) {
        await receive(port, counter, frames, { quietMs: 200 });
        const { rxRings } = await lab.port('netmap:veth0');
        all = counter.frames + (rxRings[0]!.drops['full'] ?? 0) + lab.lost() - lostBefore;
      }
      assert.equal(all, frames);
      assert.equal(counter.wrong + counter.disorder, 0);
    } finally {
      await port.close();
    }
  });

  it('R19: a user that is killed leaves its buffers with the kernel; the next one gets whole frames', async () => {
    for (let i = 0; i < 3; i++) {
      const user = lab.here.ptnet('pkt-gen', '-i', 'netmap:veth0', '-f', 'rx', '--run-dir', lab.runDir);
      while (!(await lab.ports()).some((p) => p.running)) await sleep(20);
      const sender = await lab.there.peer('send', 'veth1', '100000', '100', '0').ready();
      user.kill('SIGKILL');
      await sender.result();
      await lab.givenBack();
      const port = await openPort('netmap:veth0', { runDir: lab.runDir });
      await conserves(lab, port, 100, { frames: 2000 });
      await port.close();
    }
  });

  it('AF_XDP, generic, where the driver has no XDP: a bridge', async () => {
    lab.bridge();
    const port = await openPort('netmap:br0', { runDir: lab.runDir });
    try {
      assert.equal((await lab.port('netmap:br0')).interface?.mode, 'generic');
      for (const bytes of [60, 1514]) await conserves(lab, port, bytes);
    } finally {
      await port.close();
      lab.here.ip('link', 'del', 'br0');
    }
  });

  it('packet sockets, where AF_XDP is not to be had: it says why, and VLAN tags are put back', async () => {
    const port = await openPort('netmap:veth0', { runDir: lab.runDir, bufSize: 4096 });
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

  for (const [mode, bufSize] of [
    ['generic', 2048],
    ['packet', 4096],
  ] as const) {
    it(`${mode}: what a slow wire has no room for yet goes out later, though nothing else moves, and the daemon sleeps meanwhile`, async (t) => {
      lab.bridge();
      // A queue of ours: the bridge hands frames on to it while the socket's room is taken by them.
      const shaper = [
        'qdisc',
        'add',
        'dev',
        'veth0',
        'root',
        'tbf',
        'rate',
        '10mbit',
        'burst',
        '10kb',
        'limit',
        '10mb',
      ];
      const { status, text } = await lab.here.run('tc', shaper);
      if (status !== 0) return t.skip(`needs tc and Linux CONFIG_NET_SCH_TBF: ${text.trim()}`);
      const port = await openPort('netmap:br0', { runDir: lab.runDir, bufSize });
      try {
        assert.equal((await lab.port('netmap:br0')).interface?.mode, mode);
        const receiver = await lab.there.peer('receive', 'veth1').ready();
        const [ring] = port.txRings;
        const count = ring!.numSlots - 1;
        for (let n = 0; n < count; n++) {
          writeFrame(port.m.u8.subarray(ring!.bufOfs(n)), 1514, n);
          ring!.setLen(n, 1514);
        }
        const [begin, used] = [performance.now(), cpuMs(lab.daemon!.pid!)];
        ring!.head = ring!.cur = count;
        port.txsync();
        await arrival(receiver, count);
        const [took, busy] = [performance.now() - begin, cpuMs(lab.daemon!.pid!) - used];
        // No order: the sender and the shaper's timer may be on two processors, each with a queue to the other end.
        const { frames, wrong, bytes } = await receiver.result('SIGINT');
        assert.deepEqual({ frames, wrong, bytes }, { frames: count, wrong: 0, bytes: 1514 * count });
        assert.ok(busy < took / 2, `${busy} ms of CPU in ${took} ms`);
      } finally {
        await port.close();
        lab.here.ip('link', 'del', 'br0');
        await lab.here.run('tc', ['qdisc', 'del', 'dev', 'veth0', 'root']);
      }
    });
  }

  it('one ring of a queue only (/R, /T) is refused, and nothing of the interface is touched', async () => {
    const said = lab.log.length;
    for (const name of ['veth0/R', 'veth0/T', 'veth0-0/R', 'veth0^/T', 'veth0*/R', 'tap9/T'].map(
      (n) => `netmap:${n}`,
    )) {
      const why = `open ${name}: the two rings of an interface's queue go together (no /R, /T)`;
      await assert.rejects(openPort(name, { runDir: lab.runDir }), (e: Error) => e.message.includes(why));
    }
    assert.deepEqual(await lab.ports(), []);
    assert.doesNotMatch(lab.log.slice(said), /interface (veth0|tap9)/, 'it was taken, if for a moment');
    const port = await openPort('netmap:veth0', { runDir: lab.runDir });
    await assert.rejects(openPort('netmap:veth0/R', { runDir: lab.runDir }), /go together/);
    await conserves(lab, port, 100, { frames: 2000 });
    await port.close();
  });

  it('monitors: /r sees what arrives, /t what is sent, /rt both; one without a port is refused', async () => {
    await assert.rejects(
      openPort('netmap:veth0/r', { runDir: lab.runDir }),
      /there is no port netmap:veth0 to be monitored/,
    );
    const port = await openPort('netmap:veth0', { runDir: lab.runDir });
    // Rings with room for all that passes.
    const monitors = await Promise.all(
      ['/r', '/t', '/rt'].map((flags) => openPort(`netmap:veth0${flags}@conf:rx-slots=4096`, { runDir: lab.runDir })),
    );
    await conserves(lab, port, 100, { frames: 1000 });
    const seen = await Promise.all(
      monitors.map(async (monitor, i) => {
        const counter = new FrameCounter();
        await receive(monitor, counter, [1000, 1000, 2000][i]!);
        await receive(monitor, counter, 3000, { quietMs: 200 }); // no more than those
        return [counter.frames, counter.wrong];
      }),
    );
    assert.deepEqual(seen, [
      [1000, 0],
      [1000, 0],
      [2000, 0],
    ]);
    for (const open of [...monitors, port]) await open.close();
  });

  it('024: send and receive through veth: both ends are ports', async () => {
    lab.here.ip('link', 'add', 'veth1A', 'type', 'veth', 'peer', 'name', 'veth1B');
    for (const end of ['veth1A', 'veth1B']) {
      // No frames of IPv6's own.
      lab.here.ip('link', 'set', end, 'addrgenmode', 'none', 'up');
    }
    lab.here.linksUp('veth1A', 'veth1B');
    const functional = async (from: string, to: string): Promise<void> => {
      const rx = await openPort(`netmap:${to}`, { runDir: lab.runDir });
      const tx = await openPort(`netmap:${from}`, { runDir: lab.runDir });
      try {
        const sent = tx.txRings[0]!;
        tx.m.u8.fill('d'.charCodeAt(0), sent.bufOfs(0), sent.bufOfs(0) + 150);
        sent.setLen(0, 150);
        sent.head = sent.cur = 1;
        tx.txsync();
        const got = rx.rxRings[0]!;
        assert.equal(await rx.wait(POLLIN, { timeoutMs: QUIET_MS }), POLLIN);
        assert.equal(got.len(0), 150);
        assert.ok(rx.m.u8.subarray(got.bufOfs(0), got.bufOfs(0) + 150).every((byte) => byte === 'd'.charCodeAt(0)));
      } finally {
        await rx.close();
        await tx.close();
      }
    };
    await functional('veth1B', 'veth1A');
    await functional('veth1A', 'veth1B');
    lab.here.ip('link', 'del', 'veth1A');
  });
});

describe('a NIC with jumbo frames', { skip: nicSkip() }, () => {
  it('chains of slots, both ways', async () => {
    const lab = new NicLab(9000);
    try {
      await lab.start();
      // What is on its way takes five slots a frame, and so does what was released, until the kernel has it again.
      const port = await openPort('netmap:veth0', { runDir: lab.runDir, rxSlots: 4096 });
      for (const bytes of [2048, 2049, 9014]) await conserves(lab, port, bytes, { frames: FRAMES / 4 });
      await port.close();
      const packets = await openPort('netmap:veth0', {
        runDir: lab.runDir,
        bufSize: 1024,
        rxSlots: 2048,
        txSlots: 2048,
      });
      assert.equal((await lab.port('netmap:veth0')).interface?.mode, 'packet');
      for (const bytes of [1024, 9014]) await conserves(lab, packets, bytes, { frames: FRAMES / 4 });
      await packets.close();
    } finally {
      await lab.close();
    }
  });
});
