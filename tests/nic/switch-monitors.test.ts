/**
 * Zero-copy monitors of interfaces in a switch (docs/monitors.md), whose rings the datapath uses itself: they get the buffers
 * that the switch and the kernel are done with, in the region that `vale-ctl -a -m` named. What goes through the switch is
 * as without them, no buffer is lost or in two hands, whoever goes in traffic.
 */
import assert from 'node:assert/strict';
import { chmodSync } from 'node:fs';
import { dirname } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { listDaemon, type NetmapPort, openDevice, openPort } from '../../src/api/index.ts';
import { asUser } from '../unit/host/as-user.ts';
import { FrameCounter } from './nic-frames.ts';
import {
  buffers,
  eachOnce,
  FEW,
  Keeper,
  killingMonitors,
  Marked,
  type RegionName,
  regions,
  ROOM,
  shows,
} from './monitor-lab.ts';
import { NicLab, nicSkip } from './nic-lab.ts';
import { conserves, FRAMES, long, receive, send } from './nic-traffic.ts';

describe('zero-copy monitors of interfaces in a switch', { skip: nicSkip() }, () => {
  let lab: NicLab;
  const open = (name: string): Promise<NetmapPort> => openPort(name, { runDir: lab.runDir });
  const close = async (...ports: readonly NetmapPort[]): Promise<void> => {
    for (const port of ports) await port.close();
  };

  before(async () => {
    lab = new NicLab();
    await lab.start({ regions });
  });
  after(() => lab.close());

  const cases: readonly {
    readonly what: string;
    /** What is attached, and the port of it that is watched. */
    readonly letter: 'a' | 'h';
    readonly attach: string;
    readonly name: string;
    readonly region: RegionName;
    readonly mode: string;
    /** Where the other end is. */
    readonly far: string;
  }[] = [
    {
      what: 'AF_XDP, native',
      letter: 'a',
      attach: 'vale0:veth0',
      name: 'vale0:veth0',
      region: 'lab',
      mode: 'native',
      far: 'veth1',
    },
    {
      what: 'AF_XDP, generic',
      letter: 'a',
      attach: 'vale0:br0',
      name: 'vale0:br0',
      region: 'lab',
      mode: 'generic',
      far: 'veth1',
    },
    {
      what: 'packet sockets',
      letter: 'a',
      attach: 'vale0:veth0',
      name: 'vale0:veth0',
      region: 'large',
      mode: 'packet',
      far: 'veth1',
    },
    {
      what: 'a TAP interface',
      letter: 'a',
      attach: 'vale0:tap4',
      name: 'vale0:tap4',
      region: 'lab',
      mode: 'tap',
      far: 'tap4',
    },
    {
      what: 'the host’s stack',
      letter: 'h',
      attach: 'vale0:veth0',
      name: 'vale0:veth0^',
      region: 'lab',
      mode: 'host',
      far: 'veth2',
    },
  ];
  for (const { what, letter, attach, name, region, mode, far } of cases) {
    it(`R19: ${what}: all frames, both ways, and every buffer once`, async () => {
      if (mode === 'generic') lab.bridge();
      if (mode === 'host') lab.behindBridge();
      const keeper = await Keeper.of(lab, region);
      await lab.valeCtl(letter, attach, region);
      const { interface: about, vnetHdrLen } = await lab.port(name);
      assert.equal(about?.mode, mode);
      const guest = await open('vale0:guest');
      const monitors = [await open(`${name}/z${ROOM}`), await open(`${name}/z${ROOM}`)] as const;
      for (const bytes of [60, 1514]) {
        await conserves(lab, guest, bytes, { frames: FEW, far });
        for (const monitor of monitors) await shows(monitor, 2 * FEW, vnetHdrLen);
      }
      await close(monitors[0]);
      const rest = await Marked.rest(lab, region);
      eachOnce([...rest.indexes, ...buffers(monitors[1], true)]);
      await conserves(lab, guest, 100, { frames: FEW, far });
      await shows(monitors[1], 2 * FEW, vnetHdrLen);
      await rest.end();
      await lab.valeCtl('d', attach);
      await close(monitors[1], guest);
      await keeper.end();
      if (mode === 'generic' || mode === 'host') lab.here.ip('link', 'del', 'br0');
      if (mode === 'host') lab.here.ip('link', 'del', 'veth2');
    });
  }

  it('refused: where the region has no room for others, and another region for a port that has one', async () => {
    await lab.valeCtl('a', 'vale0:veth0');
    const advice = /attach the interface with a region that has \(-m ID of ptnet vale-ctl -a and -h\)/;
    await assert.rejects(open('vale0:veth0/z'), { code: 'ENOMEM', message: advice });
    await lab.valeCtl('d', 'vale0:veth0');
    await assert.rejects(lab.valeCtl('a', 'vale0:veth0', 'a b'), /a region's name has letters/);
    await assert.rejects(lab.valeCtl('a', 'vale0:veth0@lab'), /valeSSS:INTERFACE is wanted/);
    await lab.givenBack();
  });

  it('R10, R19: monitors killed in traffic: no frame of the switch is lost or touched, and no buffer', async () => {
    const keeper = await Keeper.of(lab, 'lab');
    await lab.valeCtl('a', 'vale0:veth0', 'lab');
    const guest = await open('vale0:guest');
    const ended = new AbortController();
    const killing = killingMonitors(lab, 'vale0:veth0/z', ended.signal);
    for (let round = 0; round < (long ? 20 : 2); round++) await conserves(lab, guest, 1000, { frames: FRAMES });
    ended.abort();
    await killing;
    const rest = await Marked.rest(lab, 'lab');
    await conserves(lab, guest, 1000, { frames: FEW });
    await rest.end();
    await lab.valeCtl('d', 'vale0:veth0');
    await guest.close();
    await keeper.end();
  });

  for (const { how, away, back } of [
    { how: 'detached', away: () => lab.valeCtl('d', 'vale0:veth0'), back: () => {} },
    { how: 'deleted', away: () => lab.here.ip('link', 'del', 'veth0'), back: () => lab.wire() },
  ]) {
    it(`R19: the interface ${how} in traffic: its monitors end with it, the switch goes on, no buffer is lost`, async () => {
      const keeper = await Keeper.of(lab, 'lab');
      const guest = await open('vale0:guest');
      for (let round = 0; round < (long ? 20 : 3); round++) {
        await lab.valeCtl('a', 'vale0:veth0', 'lab');
        const monitors = [await open('vale0:veth0/z'), await open('vale0:veth0/z'), await open('vale0:veth0/rt')];
        const ended = new AbortController();
        const sender = await lab.there.peer('send', 'veth1', '1000000', '100', '0').ready();
        const counters = monitors.map(() => new FrameCounter());
        const told = monitors.map((monitor, i) =>
          assert.rejects(receive(monitor, counters[i]!, 1e9), { code: 'ENODEV', message: /monitored port is gone/ }),
        );
        const sending = (async () => {
          while (!ended.signal.aborted) await send(guest, 200, 100);
        })();
        while (counters.some((counter) => counter.frames < FEW)) await sleep(5);
        await away();
        await Promise.all(told);
        for (const counter of counters) assert.equal(counter.wrong, 0);
        ended.abort();
        await sending;
        await sender.stop();
        // Who watched may still look at what he has: it is given to nobody else before he closes it.
        const kept = monitors.slice(0, 2).map((monitor) => new Marked(monitor));
        back();
        await receive(guest, new FrameCounter(), 1e9, { quietMs: 200 });
        await lab.valeCtl('a', 'vale0:veth0', 'lab');
        const rest = await Marked.rest(lab, 'lab');
        eachOnce([rest, ...kept].flatMap((marked) => marked.indexes));
        await conserves(lab, guest, 100, { frames: FEW });
        await rest.end();
        await lab.valeCtl('d', 'vale0:veth0');
        for (const marked of kept) await marked.end();
        await close(...monitors);
        await keeper.settled();
      }
      await guest.close();
      await keeper.end();
    });
  }

  it('R21: whose configuration names both monitor and region may watch so, and nobody else', async () => {
    await lab.end();
    chmodSync(dirname(lab.runDir), 0o711);
    const users = {
      60001: { ports: ['vale0:veth0/z', '@lab'] },
      60002: { ports: ['vale0:veth0/z'] },
      60003: { ports: ['vale0:*', '@lab'] },
    };
    await lab.start({ regions, users });
    await lab.valeCtl('a', 'vale0:veth0', 'lab');
    const asked = async (uid: number): Promise<string> => {
      const { reply, error } = await asUser(uid, lab.runDir, { op: 'open', port: 'vale0:veth0/z' });
      return reply ?? error!;
    };
    assert.match(await asked(60001), /"ok":true/);
    assert.match(await asked(60002), /let the user open \\"@lab\\".*"errno":"EPERM"/);
    assert.match(await asked(60003), /let the user open \\"vale0:veth0\/z\\".*"errno":"EPERM"/);
    await lab.valeCtl('d', 'vale0:veth0');
  });

  it('a VM’s monitor waits for an interface, and sees it again when it was detached and is back', async () => {
    await lab.end();
    await lab.start({ regions, vms: { ids: { ports: [`vale0:veth0/z@lab${ROOM}`] } } });
    const [vm] = (await listDaemon(lab.runDir)).vms;
    const monitor = await openDevice(vm!.sockets[0]!, vm!.sockets[1]!);
    const guest = await open('vale0:guest');
    for (let round = 0; round < 2; round++) {
      await lab.valeCtl('a', 'vale0:veth0', 'lab');
      await conserves(lab, guest, 100, { frames: FEW });
      await shows(monitor, 2 * FEW);
      await lab.valeCtl('d', 'vale0:veth0');
    }
    await close(guest, monitor);
  });
});
