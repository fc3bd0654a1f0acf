/**
 * Zero-copy monitors of interfaces' own ports (docs/monitors.md): they get the buffers that the port's user and the kernel are
 * done with, and the kernel gets theirs. No frame is touched, no buffer is lost or in two hands, whoever goes in traffic.
 */
import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { NS_TXMON } from '../../src/abi/index.ts';
import { listDaemon, type NetmapPort, openDevice, openPort, POLLIN } from '../../src/api/index.ts';
import { FrameCounter } from './nic-frames.ts';
import { NicLab, nicSkip } from './nic-lab.ts';
import {
  buffers,
  eachOnce,
  FEW,
  Keeper,
  killingMonitors,
  type RegionName,
  regions,
  ROOM,
  shows,
} from './monitor-lab.ts';
import { conserves, FRAMES, long, QUIET_MS, receive, send } from './nic-traffic.ts';

describe('zero-copy monitors of interfaces', { skip: nicSkip() }, () => {
  let lab: NicLab;
  const open = (name: string): Promise<NetmapPort> => openPort(name, { runDir: lab.runDir });

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
    readonly region: RegionName;
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
      if (fars.includes(stack)) lab.behindBridge();
      const keeper = await Keeper.of(lab, region);
      const port = await open(`${name}@${region}`);
      const monitors = [await open(`${name}/z${ROOM}`), await open(`${name}/z${ROOM}`)] as const;
      assert.equal((await lab.port(name)).interface?.mode, mode);
      for (const bytes of [60, 1514]) {
        for (const [ring, far] of fars.entries()) {
          await conserves(lab, port, bytes, { frames: FEW, far, ring });
          for (const monitor of monitors) await shows(monitor, 2 * FEW);
        }
      }
      eachOnce([...buffers(port, false), ...monitors.flatMap((monitor) => buffers(monitor, true))]);
      for (const closed of [monitors[0], port, monitors[1]]) await closed.close();
      await keeper.end();
      if (mode === 'generic' || fars.includes(stack)) lab.here.ip('link', 'del', 'br0');
      if (fars.includes(stack)) lab.here.ip('link', 'del', 'veth2');
    });
  }

  it('without a copy: what was received when it was read, what was sent when it is gone', async () => {
    const port = await open('netmap:veth0@lab');
    const monitor = await open('netmap:veth0/z');
    const [rx, tx, seen] = [port.rxRings[0]!, port.txRings[0]!, monitor.rxRings[0]!];
    const sender = await lab.there.peer('send', 'veth1', '1', '200', '0').ready();
    assert.equal(await port.wait(POLLIN, { timeoutMs: QUIET_MS }), POLLIN);
    await sender.result();
    const held = rx.bufIdx(rx.head);
    assert.equal(await monitor.wait(POLLIN, { timeoutMs: 50 }), 0, 'it is not read yet');
    rx.head = rx.cur = rx.next(rx.head);
    port.rxsync();
    assert.equal(await monitor.wait(POLLIN, { timeoutMs: QUIET_MS }), POLLIN);
    assert.deepEqual([seen.bufIdx(0), seen.len(0), seen.flags(0) & NS_TXMON], [held, 200, 0]);
    const sent = tx.bufIdx(tx.head);
    seen.head = seen.cur = 1;
    monitor.rxsync();
    await send(port, 1, 300);
    assert.equal(await monitor.wait(POLLIN, { timeoutMs: QUIET_MS }), POLLIN);
    assert.deepEqual([seen.bufIdx(1), seen.len(1), seen.flags(1) & NS_TXMON], [sent, 300, NS_TXMON]);
    for (const closed of [monitor, port]) await closed.close();
  });

  it('refused: where the region has no room for others', async () => {
    const port = await open('netmap:veth0');
    await assert.rejects(open('netmap:veth0/z'), { code: 'ENOMEM', message: /netmap:veth0@ID/ });
    await port.close();
  });

  it('R10, R19: monitors killed in traffic: no frame of the port is lost or touched, and no buffer', async () => {
    const keeper = await Keeper.of(lab, 'lab');
    const port = await open('netmap:veth0@lab');
    const ended = new AbortController();
    const killing = killingMonitors(lab, 'netmap:veth0/z', ended.signal);
    for (let round = 0; round < (long ? 20 : 2); round++) await conserves(lab, port, 1000, { frames: FRAMES });
    ended.abort();
    await killing;
    await conserves(lab, port, 1000, { frames: FEW });
    await port.close();
    await keeper.end();
  });

  it('R19: the port’s user killed in traffic: the monitor hears of it, no buffer is lost', async () => {
    const keeper = await Keeper.of(lab, 'lab');
    for (let round = 0; round < 3; round++) {
      const user = lab.here.ptnet('pkt-gen', '-i', 'netmap:veth0@lab', '-f', 'rx', '--run-dir', lab.runDir);
      while (!(await lab.ports()).some((p) => p.name === 'netmap:veth0' && p.running)) await sleep(20);
      const monitor = await open('netmap:veth0/z');
      // Until enough have come: how many are lost on the way is the machine's affair.
      const sender = await lab.there.peer('send', 'veth1', String(1e9), '100', '0').ready();
      const counter = new FrameCounter();
      const told = assert.rejects(receive(monitor, counter, 1e9), { code: 'ENODEV' });
      while (counter.frames < FEW) await sleep(5);
      user.kill('SIGKILL');
      await told;
      assert.equal(counter.wrong, 0);
      await sender.stop();
      await monitor.close();
      await keeper.settled();
    }
    await keeper.end();
  });

  it('R19: the interface deleted in traffic: its monitors end with it, no buffer is lost', async () => {
    const keeper = await Keeper.of(lab, 'lab');
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
    await keeper.settled();
    lab.wire();
    const again = await open('netmap:veth0@lab');
    await conserves(lab, again, 100, { frames: FEW });
    await again.close();
    await keeper.end();
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
        await shows(monitor, 2 * FEW);
        lab.here.ip('link', 'del', 'veth0');
        // It has it open still when the next one comes.
        await assert.rejects(port.wait(POLLIN, { timeoutMs: QUIET_MS }), { code: 'ENODEV' });
        lab.wire();
      }
      for (const closed of [...ports, monitor]) await closed.close();
    });
  }
});
