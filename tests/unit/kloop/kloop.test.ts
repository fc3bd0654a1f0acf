/** The loop of a datapath thread, driven by the test or run on this thread with a guest on another. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { test } from 'node:test';
import { Worker } from 'node:worker_threads';
import { kring, nm_csb_atok, nm_csb_ktoa, PTNET_IO } from '../../../src/abi/index.ts';
import { CTL } from '../../../src/kloop/index.ts';
import { errno, eventfd, eventfdRead, eventfdSignal } from '../../../src/os/index.ts';
import { type DeviceRig, RawGuest, type RigPort, SharedRing, withRig } from '../device/rig.ts';
import type { LateGuest } from './late-guest.ts';

interface Running extends RigPort {
  readonly guest: RawGuest;
  readonly tx: SharedRing;
  readonly rx: SharedRing;
}

async function running(rig: DeviceRig, add: Parameters<DeviceRig['addPort']>[0] = {}): Promise<Running> {
  const port = rig.addPort(add);
  const guest = new RawGuest(await rig.connect(port.device));
  await guest.start();
  const { region, registration } = port;
  const tx = new SharedRing(region, registration, registration.txRings[0]!);
  const rx = new SharedRing(region, registration, registration.rxRings[0]!);
  for (let i = 0; i < tx.ring.numSlots; i++) tx.put(i, new Uint8Array(60).fill(255));
  return { ...port, guest, tx, rx };
}

const armed = (p: Running, ring: number): number =>
  p.guest.memory.u32(p.guest.ktoa(ring) + nm_csb_ktoa.ofs.kern_need_kick);

/** Runs the loop on this thread until `done`, which is asked whenever the datapath has served something. */
function runUntil(rig: DeviceRig, done: () => boolean): void {
  const { serve } = rig.datapath;
  rig.datapath.serve = (d) => {
    const moved = serve(d);
    if (moved > 0 && done()) rig.kloop.execute({ op: 'end' });
    return moved;
  };
  rig.kloop.run();
}

test('R11: a tx ring is armed when drained, an rx ring of a VALE port never', () =>
  withRig(async (rig) => {
    const [a, b] = [await running(rig), await running(rig)];
    const { arm } = rig.datapath;
    const states: number[][] = [];
    rig.datapath.arm = (d) => {
      states.push([armed(a, 0), armed(a, 1), armed(b, 1)]);
      arm(d);
      states.push([armed(a, 0), armed(a, 1), armed(b, 1)]);
      a.guest.setHead(0, 3);
    };
    runUntil(rig, () => true);
    assert.deepEqual(states, [
      [1, 1, 1],
      [1, 0, 0],
    ]);
    assert.equal(armed(a, 0), 0, 'a ring that moves is disarmed');
    assert.equal(b.guest.hwtail(1), 3);
  }));

test('R11: an rx ring is disarmed by the first frames too, however busy the thread is', () =>
  withRig(async (rig) => {
    const [a, b] = [await running(rig), await running(rig)];
    a.guest.setHead(0, 1);
    rig.kloop.turn();
    assert.equal(armed(b, 1), 0);
  }));

test('R12: a head that becomes visible only after the first look is found by the next, without a kick or a sleep', (t) =>
  withRig(async (rig) => {
    const a = await running(rig);
    const { look } = rig.datapath;
    const beats: number[] = [];
    // A clock of the test's own, 1 µs on whenever it is read: how long this thread really takes does not matter.
    let ms = 0;
    t.mock.method(performance, 'now', () => (ms += 0.001));
    rig.datapath.look = (d) => {
      const ready = look(d);
      beats.push(Atomics.load(rig.ctl, CTL.HEARTBEAT));
      if (beats.length === 1) {
        // The guest's store leaves its processor's store buffer now, and this thread is held up for longer than it looks.
        a.guest.setHead(0, 1);
        ms += 1;
      }
      return ready;
    };
    runUntil(rig, () => true);
    assert.equal(beats.length, 2);
    assert.equal(beats[0], beats[1], 'no sleep in between');
  }));

test('R12: it keeps looking for 20 µs from the moment that all rings are armed', () =>
  withRig(async (rig) => {
    const a = await running(rig);
    const { arm, look } = rig.datapath;
    let armedAt = 0;
    let lastLook = 0;
    rig.datapath.arm = (d) => {
      arm(d);
      for (const end = performance.now() + 0.2; performance.now() < end; );
      armedAt = performance.now();
    };
    rig.datapath.look = (d) => {
      const beat = Atomics.load(rig.ctl, CTL.HEARTBEAT);
      if (lastLook !== 0 && beat !== sleepBeat) {
        a.guest.setHead(0, 1);
        return look(d);
      }
      sleepBeat = beat;
      lastLook = performance.now();
      return look(d);
    };
    let sleepBeat = 0;
    runUntil(rig, () => true);
    assert.ok(
      lastLook - armedAt >= 0.02,
      `the last look before the sleep began ${(lastLook - armedAt) * 1000} µs after arming`,
    );
  }));

/** Runs the loop here while a guest on another thread waits for it to sleep. */
async function withLateGuest(rig: DeviceRig, a: Running, kick: number, rounds: number): Promise<void> {
  let ended = false;
  rig.takeMail = () => {
    ended = true;
    rig.kloop.execute({ op: 'end' });
  };
  const { memory } = a.guest;
  const workerData: LateGuest = {
    ctl: rig.ctl,
    fd: memory.fd,
    atok: a.guest.atok(0),
    ktoa: a.guest.ktoa(0),
    slots: a.tx.ring.numSlots,
    kick,
    rounds,
  };
  const worker = new Worker(new URL('late-guest.js', import.meta.url), { workerData });
  const gone = once(worker, 'exit');
  rig.kloop.run();
  assert.ok(ended);
  await gone;
}

test('R12: a wake-up that is lost for good costs one sleep: heads written without a kick are served all the same', () =>
  withRig(async (rig) => {
    const a = await running(rig);
    await withLateGuest(rig, a, -1, 5);
    assert.equal(a.guest.hwcur(0), 5);
  }));

test('R14: kicks while it sleeps wake it, edge-triggered: nobody reads the eventfd', () =>
  withRig(async (rig) => {
    const a = await running(rig);
    const [kick] = (await a.guest.client.regionIoFds(0)).map((e) => e.fd);
    await withLateGuest(rig, a, kick!, 300);
    assert.equal(a.guest.hwcur(0), 300 % 32);
    assert.equal(eventfdRead(kick!), 300n);
  }));

test('R13: who asks for an interrupt when hwtail moves gets one, who does not gets none', () =>
  withRig(async (rig) => {
    const [a, b] = [await running(rig), await running(rig)];
    const fds = [eventfd(), eventfd()];
    await b.guest.client.setIrqs({ index: 2, start: 0, fds });
    const wish = b.guest.atok(1) + nm_csb_atok.ofs.appl_need_kick;
    let head = 0;
    for (const wants of [1, 0, 1, 0xffffffff, 0]) {
      b.guest.memory.setU32(wish, wants);
      a.guest.setHead(0, ++head);
      rig.kloop.turn();
      assert.equal(eventfdRead(fds[1]!), wants === 0 ? 0n : 1n);
      rig.kloop.turn();
      assert.equal(eventfdRead(fds[1]!), 0n, 'once for each move');
    }
  }));

test('R13: while packets flow, an interrupt waits until half of the ring is ready, but not when nothing moves any more', () =>
  withRig(async (rig) => {
    const [a, b] = [await running(rig), await running(rig)];
    const fds = [eventfd(), eventfd()];
    await b.guest.client.setIrqs({ index: 2, start: 0, fds });
    b.guest.memory.setU32(b.guest.atok(1) + nm_csb_atok.ofs.appl_need_kick, 1);
    const heads = [1, 1, 10, 17, 17];
    const interrupts: bigint[] = [];
    const { serve } = rig.datapath;
    rig.datapath.serve = (d) => {
      const i = interrupts.push(eventfdRead(fds[1]!)) - 1;
      if (i === heads.length - 1) rig.kloop.execute({ op: 'end' });
      a.guest.setHead(0, heads[i]!);
      return serve(d);
    };
    rig.kloop.run();
    assert.deepEqual(interrupts, [0n, 0n, 1n, 0n, 1n]);
  }));

test('R13: an interrupt that is held back is not lost when its ring is stopped', () =>
  withRig(async (rig) => {
    const [a, b] = [await running(rig), await running(rig)];
    const fds = [eventfd(), eventfd()];
    await b.guest.client.setIrqs({ index: 2, start: 0, fds });
    const { serve } = rig.datapath;
    rig.datapath.serve = (d) => {
      a.guest.setHead(0, 1);
      const moved = serve(d);
      rig.kloop.execute({ op: 'end' });
      return moved;
    };
    rig.kloop.run();
    assert.equal(eventfdRead(fds[1]!), 0n);
    rig.kloop.execute({ op: 'stop', krings: [b.registration.rxRings[0]!.kring] });
    assert.equal(eventfdRead(fds[1]!), 1n);
  }));

test('R16: kicks that nobody asked for, on every ring and beyond, and sync_flags of any value change nothing', () =>
  withRig(async (rig) => {
    const [a, b] = [await running(rig), await running(rig)];
    for (const garbage of [0xffffffff, 0x80000000, 3, 0]) {
      for (let ring = 0; ring < 2; ring++) {
        a.guest.memory.setU32(a.guest.atok(ring) + nm_csb_atok.ofs.sync_flags, garbage);
        await a.guest.write(PTNET_IO.KICK_BASE + 4 * ring, garbage);
      }
      await a.guest.write(PTNET_IO.KICK_BASE + 8, garbage);
      assert.equal(rig.kloop.turn(), 0);
    }
    a.guest.setHead(0, 2);
    assert.equal(rig.kloop.turn(), 2);
    assert.equal(b.guest.hwtail(1), 2);
  }));

test('R8: a flooder gets one ring’s length a turn; its neighbour is served in every turn', () =>
  withRig(async (rig) => {
    const [flooder, neighbour] = [await running(rig), await running(rig)];
    await running(rig);
    let [f, n] = [0, 0];
    const { serve } = rig.datapath;
    rig.datapath.serve = (d) => {
      const moved = serve(d);
      assert.ok(moved <= 31 + 1, `${moved} slots in one turn`);
      return moved;
    };
    for (let turn = 0; turn < 200; turn++) {
      f = (f + 31) % 32;
      n = (n + 1) % 32;
      flooder.guest.setHead(0, f);
      neighbour.guest.setHead(0, n);
      rig.kloop.turn();
      assert.equal(neighbour.guest.hwcur(0), n);
      assert.equal(flooder.guest.hwcur(0), f);
    }
  }));

test('R2: a trap stops its domain and no other; its rings can be let go, its port detached', () =>
  withRig(async (rig) => {
    const other = rig.space.alloc(128 * 1024);
    rig.arena.mapAnonymous(other, 128 * 1024);
    rig.kloop.execute({ op: 'domain-add', domain: other });
    const a = await running(rig);
    const { serve } = rig.datapath;
    let served = 0;
    rig.datapath.serve = (d) => {
      if (d === other) served++;
      return serve(d);
    };
    // Its buffers go away under the datapath, as after a mistake of ours: a real trap of the module.
    const pool = a.registration.regionAddr + a.registration.bufPoolOfs;
    rig.arena.unmap(pool, a.registration.regionBytes - a.registration.bufPoolOfs);
    a.guest.setHead(0, 1);
    rig.kloop.turn();
    assert.equal(rig.traps.length, 1);
    assert.match(rig.traps[0]!, /memory access out of bounds/);
    rig.kloop.turn();
    assert.equal(rig.traps.length, 1, 'reported once, and not touched again');
    assert.equal(served, 2, 'the other domain is served');
    assert.equal(await a.guest.destroy(), 0);
    const { port } = a.registration;
    assert.deepEqual(rig.kloop.execute({ op: 'port-detach', domain: rig.domain, port }), { value: 0 });
    assert.deepEqual(rig.kloop.execute({ op: 'domain-remove', domain: rig.domain }), { value: 0 });
    rig.kloop.turn();
  }));

test('a command that fails is answered with its reason; a start of running rings with EBUSY', () =>
  withRig(async (rig) => {
    const a = await running(rig);
    const refused = rig.kloop.execute({ op: 'kick-remove', fd: 9999 });
    assert.deepEqual(refused, { error: 'datapath: kick-remove: epoll_ctl(DEL, fd 9999)', errno: errno.EBADF });
    const { port, csbAddr, txRings } = a.registration;
    const rings = [{ kring: txRings[0]!.kring, atok: csbAddr[0], ktoa: csbAddr[1] }];
    const again = rig.kloop.execute({ op: 'start', port, vnetHdrLen: 0, rings });
    assert.deepEqual(again, { value: 16 });
    assert.equal(kring.get.state(rig.arena.m, txRings[0]!.kring), 1);
  }));

test('R7: a ring with a bad head is put right once and lets the thread sleep until it is valid again', () =>
  withRig(async (rig) => {
    const a = await running(rig);
    a.guest.setHead(0, 77_777);
    assert.equal(rig.kloop.turn(), 0);
    assert.equal(rig.datapath.look(rig.domain), 0, 'it does not keep the thread awake');
    for (let i = 0; i < 5; i++) rig.kloop.turn();
    assert.equal(kring.get.repairs(rig.arena.m, a.registration.txRings[0]!.kring), 1n);
    a.guest.setHead(0, 4);
    assert.equal(rig.datapath.look(rig.domain), 1);
    assert.equal(rig.kloop.turn(), 4);
    assert.ok(eventfdSignal(rig.kloop.doorbell) === 0);
  }));

test('R8, R10: a receiver that never takes its frames costs another one none, and the thread a few yields; one that waits for the CPU gets it', async (t) => {
  const turns = 500;
  const batch = 8;
  /** A floods B, which takes all at once, and C, which takes all it has only while the thread gives way to it, or nothing. */
  const flood = async (takes: boolean): Promise<{ yields: number; b: number; c: number }> => {
    let yields = 0;
    let received: number[] = [];
    await withRig(async (rig) => {
      const [a, b, c] = [await running(rig), await running(rig), await running(rig)];
      const take = (p: Running): void => p.guest.setHead(1, p.guest.hwtail(1));
      // A clock of the test's own, 1 µs on whenever it is read.
      let ms = 0;
      t.mock.method(performance, 'now', () => (ms += 0.001));
      rig.givenWay = () => {
        yields++;
        if (takes) take(c);
      };
      const { serve } = rig.datapath;
      let turn = 0;
      rig.datapath.serve = (d) => {
        a.guest.setHead(0, (turn++ * batch) % 32);
        take(b);
        return serve(d);
      };
      runUntil(rig, () => turn > turns);
      received = [b, c].map((p) => Number(kring.get.packets(rig.arena.m, p.registration.rxRings[0]!.kring)));
    });
    return { yields, b: received[0]!, c: received[1]! };
  };
  const never = await flood(false);
  assert.deepEqual([never.b, never.c], [turns * batch, 31]);
  assert.ok(never.yields >= 1 && never.yields <= 10, `${never.yields} yields`);
  const waits = await flood(true);
  assert.equal(waits.b, turns * batch);
  assert.ok(waits.yields > never.yields, `${waits.yields} yields`);
  assert.ok(waits.c >= 31 * waits.yields, `${waits.c} frames by ${waits.yields} yields`);
});

test('R2: a ring that a stopped sender filled and that was stopped since is not looked at: its CSB may be gone', () =>
  withRig(async (rig) => {
    const [a, b, c] = [await running(rig), await running(rig), await running(rig)];
    rig.givenWay = () => assert.fail('gave way to a stopped ring');
    await c.guest.destroy();
    a.guest.setHead(0, 31);
    rig.kloop.turn();
    a.guest.setHead(0, 5);
    await a.guest.destroy();
    await b.guest.destroy();
    c.guest.prepare();
    assert.equal(await c.guest.create(), 0);
    c.guest.setHead(0, 3);
    runUntil(rig, () => true);
    const dropped = kring.get.drop_full(rig.arena.m, b.registration.rxRings[0]!.kring);
    assert.equal(dropped, 6n);
  }));
