/**
 * The TypeScript driver in a virtual machine's user space (docs/abi.md 5): through VFIO behind a virtual IOMMU, with MSI-X,
 * and through sysfs without one; against the host's pkt-gen and from machine to machine; killed in traffic.
 */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, before, describe, test } from 'node:test';
import { imageWithPtnet, startMachine } from './machines.ts';
import { PktGen, PtnetDaemon, reported, until } from './ptnet.ts';
import type { GuestImage, QemuGuest } from './qemu.ts';

const PACKETS = 4000;
/** Packets a second: slow enough for a JavaScript program on an emulated processor. */
const RATE = 2000;
/** A receiver on the host has room for all, however long it waits for its processor. */
const ROOM = ['-C', '4096'];
const SLOW_MS = 300_000;

describe('ptnet in virtual machines', { concurrency: false }, () => {
  const dir = mkdtempSync(join(tmpdir(), 'ptnet-e2e-'));
  const runDir = join(dir, 'run');
  let daemon: PtnetDaemon;
  let image: GuestImage;
  /** v has a virtual IOMMU, s has none. */
  const guests: { v?: QemuGuest; s?: QemuGuest } = {};

  before(async () => {
    image = await imageWithPtnet(dir);
    daemon = await PtnetDaemon.start({ runDir, vms: { v: { ports: ['vale0:v'] }, s: { ports: ['vale0:s'] } } });
    guests.v = await startMachine(runDir, 'v', image, ['--iommu', '--memory', '640M']);
    guests.s = await startMachine(runDir, 's', image, ['--memory', '640M']);
    await Promise.all([guests.v.waitReady(), guests.s.waitReady()]);
  });

  after(async () => {
    await guests.v?.close();
    await guests.s?.close();
    await daemon?.end('SIGTERM');
    rmSync(dir, { recursive: true, force: true });
  });

  afterEach(async () => {
    for (const generator of generators.splice(0)) await generator.end('SIGKILL');
    for (const guest of Object.values(guests)) await guest.run('killall -9 node');
  });

  const generators: PktGen[] = [];
  /** pkt-gen on the host. */
  const pktGen = async (args: readonly string[]): Promise<PktGen> => {
    const generator = await PktGen.start(runDir, 'vale0:host', args);
    generators.push(generator);
    return generator;
  };

  const running = async (port: string): Promise<boolean> => (await daemon.port(port)).running;

  /** Starts pkt-gen in a guest, in the background, and waits until its rings run. */
  const start = async (name: 'v' | 's', args: string): Promise<string> => {
    const pid = await guests[name]!.mustRun(`ptnet pkt-gen -i ptnet:0 --json -N ${args} > /tmp/${name} 2>&1 & echo $!`);
    await until(`the rings of ${name} run`, async () => {
      const { rc } = await guests[name]!.run(`kill -0 ${pid.trim()}`);
      if (rc !== 0) assert.fail(await guests[name]!.mustRun(`cat /tmp/${name}`));
      return running(`vale0:${name}`);
    });
    return pid.trim();
  };

  /** Ends it and reads its result. */
  const stop = async (name: 'v' | 's', pid: string): Promise<{ packets: number }> => {
    await guests[name]!.run(`kill -INT ${pid}`);
    await until(`the rings of ${name} stop`, async () => !(await running(`vale0:${name}`)));
    await until('it ends', async () => (await guests[name]!.run(`kill -0 ${pid}`)).rc !== 0);
    return result(await guests[name]!.mustRun(`cat /tmp/${name}`));
  };

  const result = (output: string): { packets: number } => {
    const line = output.split('\n').find((l) => l.startsWith('{'));
    assert.ok(line !== undefined, output);
    return JSON.parse(line) as { packets: number };
  };

  /** Waits until a program in a guest has counted all that was sent but what was dropped. @returns what was dropped */
  const counted = async (name: 'v' | 's', sent: number, droppedBefore: number): Promise<number> => {
    let lost = 0;
    await until(`all of ${sent} packets are received or dropped`, async () => {
      lost = (await dropped(`vale0:${name}`)) - droppedBefore;
      return reported(await guests[name]!.mustRun(`cat /tmp/${name}`)) + lost >= sent;
    });
    return lost;
  };

  const dropped = async (port: string): Promise<number> =>
    (await daemon.port(port)).rxRings.flatMap((r) => Object.values(r.drops)).reduce((sum, n) => sum + n, 0);

  for (const name of ['v', 's'] as const) {
    const how = { v: 'VFIO and MSI-X, behind a virtual IOMMU', s: 'sysfs and a timer' }[name];

    test(`${how}: the host sends, the guest receives`, async () => {
      const receiver = await start(name, '-f rx');
      const atFirst = await dropped(`vale0:${name}`);
      const sender = await pktGen(['-f', 'tx', '-n', `${PACKETS}`, '-R', `${RATE}`]);
      assert.equal((await sender.result(SLOW_MS)).packets, PACKETS);
      const lost = await counted(name, PACKETS, atFirst);
      const { packets } = await stop(name, receiver);
      assert.equal(packets + lost, PACKETS, 'received + dropped at the full ring');
      assert.ok(packets > 0);
    });

    test(`${how}: the guest sends, the host receives`, async () => {
      const receiver = await pktGen(['-f', 'rx', ...ROOM]);
      const output = await guests[name]!.mustRun(
        `ptnet pkt-gen -i ptnet:0 --json -f tx -n ${PACKETS} -R ${RATE}`,
        SLOW_MS,
      );
      assert.equal(result(output).packets, PACKETS);
      await receiver.counted(PACKETS);
      await receiver.end('SIGINT');
      assert.equal((await receiver.result()).packets, PACKETS);
    });

    test(`${how}: the guest answers the host's pings`, async () => {
      const answerer = await start(name, '-f pong');
      const asker = await pktGen(['-f', 'ping', '-n', '50']);
      const { rtt } = await asker.result(SLOW_MS);
      await stop(name, answerer);
      assert.ok((rtt?.received ?? 0) >= 45, `${rtt?.received} of 50 answers`);
    });

    test(`${how}: killed in traffic, and started again`, async () => {
      const first = await start(name, '-f tx');
      const sent = async (): Promise<number> => (await daemon.port(`vale0:${name}`)).txRings[0]!.packets;
      const atFirst = await sent();
      await until('it sends', async () => (await sent()) > atFirst + 1000);
      await guests[name]!.mustRun(`kill -9 ${first}`);
      // Behind an IOMMU the kernel takes the memory away, which stops the rings; else nobody knows yet.
      if (name === 'v') await until('its rings stop', async () => !(await running('vale0:v')));
      const receiver = await pktGen(['-f', 'rx', ...ROOM]);
      const output = await guests[name]!.mustRun(`ptnet pkt-gen -i ptnet:0 --json -f tx -n 500 -R ${RATE}`, SLOW_MS);
      assert.equal(result(output).packets, 500);
      await receiver.counted(500);
      await receiver.end('SIGINT');
    });
  }

  test('one guest sends, the other receives', async () => {
    const receiver = await start('v', '-f rx');
    const atFirst = await dropped('vale0:v');
    const output = await guests.s!.mustRun(`ptnet pkt-gen -i ptnet:0 --json -f tx -n ${PACKETS} -R ${RATE}`, SLOW_MS);
    assert.equal(result(output).packets, PACKETS);
    const lost = await counted('v', PACKETS, atFirst);
    const { packets } = await stop('v', receiver);
    assert.equal(packets + lost, PACKETS);
    assert.ok(packets > 0);
  });

  test('what the guest is told of a device that is not there', async () => {
    const { rc, output } = await guests.v!.run('ptnet pkt-gen -i ptnet:7 -f rx');
    assert.equal(rc, 1);
    assert.match(output, /ptnet:7: this machine has 1 ptnet devices on its PCI bus/);
  });
});
