/**
 * Zero-copy monitors of interfaces' ports (docs/monitors.md): they get the buffers that the port's user and the kernel are
 * done with, and the kernel gets theirs. No frame is touched, no buffer is lost or in two hands, whoever goes in traffic.
 */
import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { NS_TXMON } from '../../src/abi/index.ts';
import { listDaemon, type NetmapPort, openDevice, openPort, POLLIN } from '../../src/api/index.ts';
import { FrameCounter } from './nic-frames.ts';
import { NicLab, nicSkip } from './nic-lab.ts';
import { conserves, FRAMES, long, receive, send } from './nic-traffic.ts';

const FEW = 1000;
/** Rings with room for all that passes, both ways. */
const ROOM = '@conf:rx-slots=4096';
const regions = {
  lab: { buffers: 32768 },
  // No AF_XDP with buffers of this size.
  large: { buffers: 32768, bufSize: 4096 },
};

/** Buffers that a port's user has now. */
function buffers({ txRings, rxRings }: NetmapPort, all: boolean): number[] {
  const tx = txRings.flatMap((ring) => Array.from({ length: ring.numSlots }, (_, i) => ring.bufIdx(i)));
  const rx = rxRings.flatMap((ring) =>
    Array.from({ length: all ? ring.numSlots : ring.space() }, (_, i) => ring.bufIdx((ring.head + i) % ring.numSlots)),
  );
  return [...tx, ...rx];
}

describe('zero-copy monitors of interfaces', { skip: nicSkip() }, () => {
  let lab: NicLab;
  const open = (name: string): Promise<NetmapPort> => openPort(name, { runDir: lab.runDir });
  const free = async (name: string): Promise<number | undefined> =>
    (await listDaemon(lab.runDir)).regions.find((r) => r.name === name)?.freeBuffers;
  /** Waits until everything in a region is free but the keeper's. */
  const settled = async (name: string, wanted: number): Promise<void> => {
    for (let i = 0; (await free(name)) !== wanted; i++) {
      assert.ok(i < 1000, `${name}: ${await free(name)} buffers are free, ${wanted} were`);
      await sleep(10);
    }
  };

  /** What is sent at veth2 leaves through veth0, as the host's own frames do, and the other way round. */
  const behindBridge = (): void => {
    lab.bridge();
    lab.here.ip('link', 'add', 'veth2', 'type', 'veth', 'peer', 'name', 'veth3');
    lab.here.ip('link', 'set', 'veth3', 'master', 'br0');
    for (const end of ['veth2', 'veth3']) lab.here.ip('link', 'set', end, 'addrgenmode', 'none', 'up');
  };

  before(async () => {
    lab = new NicLab();
    await lab.start({ regions });
  });
  after(() => lab.close());

  /** Where the other end of each of a port's rings is. */
  const [wire, stack] = ['veth1', 'veth2'] as const;
  const cases: readonly {
    readonly what: string;
    readonly name: string;
    readonly region: keyof typeof regions;
    readonly mode: string;
    readonly fars: readonly string[];
  }[] = [
    { what: 'AF_XDP, native', name: 'netmap:veth0', region: 'lab', mode: 'native', fars: [wire] },
    { what: 'AF_XDP, generic', name: 'netmap:br0', region: 'lab', mode: 'generic', fars: [wire] },
    { what: 'packet sockets', name: 'netmap:veth0', region: 'large', mode: 'packet', fars: [wire] },
    { what: 'a TAP interface', name: 'netmap:tap3', region: 'lab', mode: 'tap', fars: ['tap3'] },
    { what: 'the host’s stack', name: 'netmap:veth0^', region: 'lab', mode: 'host', fars: [stack] },
    {
      what: 'the wire and the host’s stack',
      name: 'netmap:veth0*',
      region: 'lab',
      mode: 'native',
      fars: [wire, stack],
    },
    { what: 'these, packet sockets', name: 'netmap:veth0*', region: 'large', mode: 'packet', fars: [wire, stack] },
  ];
  for (const { what, name, region, mode, fars } of cases) {
    it(`R19: ${what}: all frames, both ways, and every buffer once`, async () => {
      if (mode === 'generic') lab.bridge();
      if (fars.includes(stack)) behindBridge();
      const keeper = await open(`vale9:keeper@${region}`);
      const least = (await free(`@${region}`))!;
      const port = await open(`${name}@${region}`);
      const monitors = [await open(`${name}/z${ROOM}`), await open(`${name}/z${ROOM}`)] as const;
      assert.equal((await lab.port(name)).interface?.mode, mode);
      for (const bytes of [60, 1514]) {
        for (const [ring, far] of fars.entries()) {
          await conserves(lab, port, bytes, { frames: FEW, far, ring });
          for (const monitor of monitors) {
            const counter = new FrameCounter();
            await receive(monitor, counter, 2 * FEW, { quietMs: 5000 });
            assert.deepEqual([counter.frames, counter.wrong], [2 * FEW, 0]);
          }
        }
      }
      const all = [...buffers(port, false), ...monitors.flatMap((monitor) => buffers(monitor, true))];
      assert.equal(new Set(all).size, all.length, 'no buffer in two hands');
      for (const closed of [monitors[0], port, monitors[1]]) await closed.close();
      await settled(`@${region}`, least);
      await keeper.close();
      if (mode === 'generic' || fars.includes(stack)) lab.here.ip('link', 'del', 'br0');
      if (fars.includes(stack)) lab.here.ip('link', 'del', 'veth2');
    });
  }

  it('without a copy: what was received when it was read, what was sent when it is gone', async () => {
    const port = await open('netmap:veth0@lab');
    const monitor = await open('netmap:veth0/z');
    const [rx, tx, seen] = [port.rxRings[0]!, port.txRings[0]!, monitor.rxRings[0]!];
    const sender = await lab.there.peer('send', 'veth1', '1', '200', '0').ready();
    assert.equal(await port.wait(POLLIN, { timeoutMs: 5000 }), POLLIN);
    await sender.result();
    const held = rx.bufIdx(rx.head);
    assert.equal(await monitor.wait(POLLIN, { timeoutMs: 50 }), 0, 'it is not read yet');
    rx.head = rx.cur = rx.next(rx.head);
    port.rxsync();
    assert.equal(await monitor.wait(POLLIN, { timeoutMs: 5000 }), POLLIN);
    assert.deepEqual([seen.bufIdx(0), seen.len(0), seen.flags(0) & NS_TXMON], [held, 200, 0]);
    const sent = tx.bufIdx(tx.head);
    seen.head = seen.cur = 1;
    monitor.rxsync();
    await send(port, 1, 300);
    assert.equal(await monitor.wait(POLLIN, { timeoutMs: 5000 }), POLLIN);
    assert.deepEqual([seen.bufIdx(1), seen.len(1), seen.flags(1) & NS_TXMON], [sent, 300, NS_TXMON]);
    for (const closed of [monitor, port]) await closed.close();
  });

  it('refused: where the region has no room for others, and of an interface in a switch', async () => {
    const port = await open('netmap:veth0');
    await assert.rejects(open('netmap:veth0/z'), { code: 'ENOMEM', message: /netmap:veth0@ID/ });
    await port.close();
    await lab.valeCtl('a', 'vale0:veth0');
    await assert.rejects(open('vale0:veth0/z'), /its monitors copy \(\/r, \/t\)/);
    await lab.valeCtl('d', 'vale0:veth0');
  });

  it('R10, R19: monitors killed in traffic: no frame of the port is lost or touched, and no buffer', async () => {
    const keeper = await open('vale9:keeper@lab');
    const least = (await free('@lab'))!;
    const port = await open('netmap:veth0@lab');
    const ended = new AbortController();
    const killing = (async () => {
      for (let killed = 0; !ended.signal.aborted || killed < 3; killed++) {
        // Two in a chain, of which either goes first.
        const monitors = [0, 1].map(() =>
          lab.here.ptnet('pkt-gen', '-i', 'netmap:veth0/z', '-f', 'rx', '--run-dir', lab.runDir),
        );
        const running = async (): Promise<number> =>
          (await lab.ports()).filter((p) => p.name.includes('/z') && p.running).length;
        while ((await running()) < 2) await sleep(10);
        await sleep(50);
        for (const monitor of killed % 2 === 0 ? monitors : monitors.toReversed()) {
          monitor.kill('SIGKILL');
          await sleep(20);
        }
        while ((await lab.ports()).some((p) => p.name.includes('/z'))) await sleep(10);
      }
    })();
    for (let round = 0; round < (long ? 20 : 2); round++) await conserves(lab, port, 1000, { frames: FRAMES });
    ended.abort();
    await killing;
    await conserves(lab, port, 1000, { frames: FEW });
    await port.close();
    await settled('@lab', least);
    await keeper.close();
  });

  it('R19: the port’s user killed in traffic: the monitor hears of it, no buffer is lost', async () => {
    const keeper = await open('vale9:keeper@lab');
    const least = (await free('@lab'))!;
    for (let round = 0; round < 3; round++) {
      const user = lab.here.ptnet('pkt-gen', '-i', 'netmap:veth0@lab', '-f', 'rx', '--run-dir', lab.runDir);
      while (!(await lab.ports()).some((p) => p.name === 'netmap:veth0' && p.running)) await sleep(20);
      const monitor = await open('netmap:veth0/z');
      const sender = await lab.there.peer('send', 'veth1', '100000', '100', '0').ready();
      const counter = new FrameCounter();
      const told = assert.rejects(receive(monitor, counter, 1e9), { code: 'ENODEV' });
      while (counter.frames < FEW) await sleep(5);
      user.kill('SIGKILL');
      await told;
      assert.equal(counter.wrong, 0);
      await sender.result();
      await monitor.close();
      await settled('@lab', least);
    }
    await keeper.close();
  });

  it('R19: the interface deleted in traffic: its monitors end with it, no buffer is lost', async () => {
    const keeper = await open('vale9:keeper@lab');
    const least = (await free('@lab'))!;
    const port = await open('netmap:veth0@lab');
    const monitors = [await open('netmap:veth0/z'), await open('netmap:veth0/rt')];
    const sender = await lab.there.peer('send', 'veth1', '1000000', '60', '0').ready();
    const ends = [
      assert.rejects(receive(port, new FrameCounter(), 1e9), { code: 'ENODEV' }),
      assert.rejects(send(port, 1e9, 60), { code: 'ENODEV' }),
      ...monitors.map((monitor) => assert.rejects(receive(monitor, new FrameCounter(), 1e9), { code: 'ENODEV' })),
    ];
    await sleep(200);
    lab.here.ip('link', 'del', 'veth0');
    await Promise.all(ends);
    await sender.result();
    for (const closed of [port, ...monitors]) await closed.close();
    await settled('@lab', least);
    lab.wire();
    const again = await open('netmap:veth0@lab');
    await conserves(lab, again, 100, { frames: FEW });
    await again.close();
    await settled('@lab', least);
    await keeper.close();
  });

  for (const name of ['netmap:veth0', 'netmap:veth0*']) {
    it(`a VM’s monitor waits for ${name}, and sees it again when its interface was gone and is back`, async () => {
      await lab.end();
      await lab.start({ regions, vms: { ids: { ports: [`${name}/z@lab${ROOM}`] } } });
      const [vm] = (await listDaemon(lab.runDir)).vms;
      const monitor = await openDevice(vm!.sockets[0]!, vm!.sockets[1]!);
      const ports: NetmapPort[] = [];
      for (let round = 0; round < 2; round++) {
        const port = await open(`${name}@lab`);
        ports.push(port);
        await conserves(lab, port, 100, { frames: FEW });
        const counter = new FrameCounter();
        await receive(monitor, counter, 2 * FEW, { quietMs: 5000 });
        assert.deepEqual([counter.frames, counter.wrong], [2 * FEW, 0]);
        lab.here.ip('link', 'del', 'veth0');
        // It has it open still when the next one comes.
        await assert.rejects(port.wait(POLLIN, { timeoutMs: 5000 }), { code: 'ENODEV' });
        lab.wire();
      }
      for (const closed of [...ports, monitor]) await closed.close();
    });
  }
});
