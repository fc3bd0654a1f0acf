/** Monitors of VMs wait for their ports: of VMs that come later, of the VM itself, of processes that come and go. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type NetmapPort, POLLIN, valeCtl } from '../../../src/api/index.ts';
import type { DaemonConfig } from '../../../src/host/config.ts';
import { receive, receiveNothing, send } from '../../netmap-utils/functional.ts';
import { bootMachine, Lab } from './support.ts';

const FRAMES = { len: 200, fill: 'm', num: 20 };
const vm = (...ports: string[]): DaemonConfig['vms'][string] => ({ ports, trustUnsealedMemory: false });

/** A VM with all its ports in one region. */
function boot(lab: Lab, name: string): ReturnType<typeof bootMachine> {
  const [memdev, ...ptnet] = lab.daemon.status().vms.find((v) => v.name === name)!.sockets;
  return bootMachine(memdev!, ptnet);
}

async function withLab(vms: DaemonConfig['vms'], body: (lab: Lab) => Promise<void>): Promise<void> {
  const lab = await Lab.start({ vms });
  try {
    await body(lab);
  } finally {
    await lab.stop();
  }
}

/** Sends both ways between two ports, and what a monitor of the first has to see. */
function exchange(a: NetmapPort, b: NetmapPort, monitor: NetmapPort): void {
  assert.ok(send(a, FRAMES));
  receive(b, FRAMES);
  receive(monitor, FRAMES, 'tx');
  assert.ok(send(b, FRAMES));
  receive(a, FRAMES);
  receive(monitor, FRAMES);
}

test('VMs watch each other’s ports and their own, in whatever order they are configured', () =>
  withLab(
    { one: vm('vale0:two/rt', 'vale0:one'), two: vm('vale0:one/rt', 'vale0:two', 'vale0:two/rt') },
    async (lab) => {
      const [vmOne, vmTwo] = [await boot(lab, 'one'), await boot(lab, 'two')];
      const [seesTwo, one] = vmOne.ports as [NetmapPort, NetmapPort];
      const [seesOne, two, seesItself] = vmTwo.ports as [NetmapPort, NetmapPort, NetmapPort];
      exchange(one, two, seesOne);
      receive(seesTwo, FRAMES);
      receive(seesItself, FRAMES);
      receive(seesTwo, FRAMES, 'tx');
      receive(seesItself, FRAMES, 'tx');
      await vmOne.off();
      await vmTwo.off();
    },
  ));

test('a VM’s monitor has as many rings as the port has by the configuration, though it opens later', () =>
  withLab({ ids: vm('vale0:w/r', 'vale0:w-1/t'), web: vm('vale0:w@conf:rings=3') }, async (lab) => {
    const { ports, off } = await boot(lab, 'ids');
    assert.deepEqual(
      ports.map((port) => port.rxRings.length),
      [3, 1],
    );
    await off();
  }));

test('a VM’s monitor waits for a process’s port, and sees it again when it comes again', () =>
  withLab({ ids: vm('vale0:x/rt') }, async (lab) => {
    const { ports, off } = await boot(lab, 'ids');
    const monitor = ports[0]!;
    for (let round = 0; round < 3; round++) {
      const b = await lab.open('vale0:b');
      receiveNothing(monitor);
      const x = await lab.open('vale0:x');
      exchange(x, b, monitor);
      await lab.close(x);
      assert.ok(send(b, FRAMES));
      receiveNothing(monitor);
      await lab.close(b);
    }
    await assert.rejects(lab.open('vale0:x/rt'), { code: 'ENOENT' }, 'a process’s monitor does not wait');
    await off();
  }));

test('a VM’s monitor of a pipe’s end that is not there yet', () =>
  withLab({ ids: vm('netmap:p}1/rt') }, async (lab) => {
    const { ports, off } = await boot(lab, 'ids');
    const monitor = ports[0]!;
    for (let round = 0; round < 2; round++) {
      const [master, slave] = [await lab.open('netmap:p{1'), await lab.open('netmap:p}1')];
      exchange(slave, master, monitor);
      await lab.close(master, slave);
    }
    await off();
  }));

test('zero copy: a chain of VMs’ monitors comes back with its port, in the region that was said', () =>
  withLab({ one: vm('vale0:z@lab/z'), two: vm('vale0:z@lab/z') }, async (lab) => {
    const [vmOne, vmTwo] = [await boot(lab, 'one'), await boot(lab, 'two')];
    const [first, second] = [vmOne.ports[0]!, vmTwo.ports[0]!];
    const b = await lab.open('vale0:b');
    const elsewhere = await lab.open('vale0:z');
    assert.ok(send(elsewhere, FRAMES));
    receive(b, FRAMES);
    receiveNothing(first);
    await lab.close(elsewhere);
    for (let round = 0; round < 3; round++) {
      const z = await lab.open('vale0:z@lab');
      const monitor = await lab.open('vale0:z/z');
      assert.ok(send(z, FRAMES));
      receive(b, FRAMES);
      receiveNothing(second);
      for (const m of [first, second, monitor]) receive(m, FRAMES, 'tx');
      // The process's monitor goes after the port or before it: those that wait do not depend on it.
      await lab.close(...(round % 2 === 0 ? [z, monitor] : [monitor, z]));
    }
    await vmOne.off();
    await vmTwo.off();
  }));

test('R19: buffers that a waiting zero-copy monitor holds are not lost when its port goes', () =>
  withLab({ ids: vm('vale0:z@lab/z') }, async (lab) => {
    const { ports, off } = await boot(lab, 'ids');
    const monitor = ports[0]!;
    const b = await lab.open('vale0:b');
    const free = async (): Promise<number> => (await lab.regions()).find((r) => r.name === '@lab')!.freeBuffers;
    const before = await free();
    for (let round = 0; round < 3; round++) {
      const z = await lab.open('vale0:z@lab');
      assert.ok(send(z, FRAMES));
      receive(b, FRAMES);
      assert.equal(monitor.poll(POLLIN, 5000), POLLIN);
      await lab.close(z);
      await lab.until((_, regions) => regions.some((r) => r.name === '@lab' && r.freeBuffers === before));
      const again = await lab.open('vale0:z@lab');
      const buffers = [again, monitor].flatMap((port) =>
        [...port.txRings, ...port.rxRings].flatMap((r) => Array.from({ length: r.numSlots }, (_, i) => r.bufIdx(i))),
      );
      assert.equal(new Set(buffers).size, buffers.length, 'no buffer in two hands');
      receive(monitor, FRAMES, 'tx');
      await lab.close(again);
    }
    await off();
  }));

test('a waiting monitor sees a persistent port that is attached under its name', () =>
  withLab({ ids: vm('vale0:v0/rt') }, async (lab) => {
    const { ports, off } = await boot(lab, 'ids');
    const monitor = ports[0]!;
    await valeCtl({ letter: 'n', name: 'v0' }, lab.runDir);
    await valeCtl({ letter: 'a', name: 'vale0:v0' }, lab.runDir);
    const [v0, b] = [await lab.open('vale0:v0'), await lab.open('vale0:b')];
    exchange(v0, b, monitor);
    await lab.close(v0, b);
    await off();
  }));

test('a monitor that cannot wait is refused with what to do', async () => {
  await assert.rejects(Lab.start({ vms: { ids: vm('vale0:x/z') } }), {
    message: /a zero-copy monitor lies in the region of vale0:x, which is not there yet; say which .*\(vale0:x\/z@ID\)/,
  });
  await assert.rejects(Lab.start({ vms: { ids: vm('netmap:none0/r') } }), {
    message: /there is no interface none0/,
  });
});
