/**
 * `ptnet up ptnet:0` in virtual machines: the TypeScript driver binds the machine's device to its network stack (R5, R6; docs/interface.md).
 * One machine has an IOMMU (VFIO, interrupts), the other none (sysfs, a timer) and a second device, a monitor of the first one's port.
 */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import type { PortStatus } from '../../src/abi/index.ts';
import { netSkip } from '../net/lab.ts';
import { imageWithPtnet, startMachine } from './machines.ts';
import { PktGen, PtnetDaemon, PtnetProcess, until } from './ptnet.ts';
import type { QemuGuest } from './qemu.ts';
import { HostStack, MachineStack, talk } from './stacks.ts';

const long = process.env['PTNET_LONG'] === '1';
const BYTES = (long ? 64 : 4) * 2 ** 20;

describe('the network stacks of virtual machines, by ptnet up', { concurrency: false }, () => {
  const dir = mkdtempSync(join(tmpdir(), 'ptnet-e2e-'));
  const runDir = join(dir, 'run');
  let daemon: PtnetDaemon;
  let v: QemuGuest;
  let s: QemuGuest;

  /** The stack of v, with the VirtIO header. */
  let stack: MachineStack;

  before(async () => {
    const image = await imageWithPtnet(dir);
    const vms = { v: { ports: ['vale0:v'] }, s: { ports: ['vale0:s', 'vale0:v/r'] } };
    daemon = await PtnetDaemon.start({ runDir, vms });
    v = await startMachine(runDir, 'v', image, ['--iommu', '--memory', '640M']);
    s = await startMachine(runDir, 's', image, ['--memory', '640M']);
    await Promise.all([v.waitReady(), s.waitReady()]);
    stack = await MachineStack.up(v, 'ptnet:0', '10.7.0.1');
    assert.match(stack.said, /ptnet0: port ptnet:0, VirtIO header of 12 bytes, 1 queue\n/);
  });

  after(async () => {
    await v?.close();
    await s?.close();
    await daemon?.end('SIGTERM');
    rmSync(dir, { recursive: true, force: true });
  });

  test('ping, and TCP in both directions, between machines', async () => {
    const other = await MachineStack.up(s, 'ptnet:0', '10.7.0.2');
    assert.match(other.said, /header of 12 bytes/);
    await talk(stack, other, BYTES);
    await other.down();
  });

  test('ping, and TCP in both directions, with a namespace of the host that has no VirtIO header', {
    skip: netSkip('nsenter', 'ping'),
  }, async () => {
    const up = new PtnetProcess(
      ['up', 'vale0:host', 'inet', '10.7.0.3/24', '--vnet-hdr', '0', '--run-dir', runDir],
      ['unshare', '-n'],
    );
    try {
      await up.says(/queue/);
      const enter = ['-t', String(up.child.pid), '-n'];
      const host = new HostStack('10.7.0.3', (program, args) => spawn('nsenter', [...enter, program, ...args]));
      await talk(host, stack, BYTES);
    } finally {
      await up.end();
    }
  });

  /** Packets that arrived at v, and at the monitor of it that s has: all, and those for which there was no room or no reader. */
  const counted = async (): Promise<{
    arrived: number;
    seen: number;
    bytes: number;
    lost: number;
    running: boolean;
  }> => {
    const ports = (await daemon.status()).domains.flatMap((d) => d.ports);
    const find = (name: RegExp): PortStatus => ports.find((p) => name.test(p.name)) ?? assert.fail(String(name));
    const [port, monitor] = [find(/^vale0:v$/), find(/^vale0:v\/r/)];
    const { packets, bytes, drops } = monitor.rxRings[0]!;
    const lost = Object.values(drops).reduce((sum, n) => sum + n, 0);
    return { arrived: port.rxRings[0]!.packets, seen: packets, bytes, lost, running: monitor.running };
  };

  test('a machine that only watches: ptnet dump of a monitor that was passed to it', async () => {
    const first = await counted();
    const pid = (await s.mustRun('ptnet dump -i ptnet:1 -w /tmp/seen.pcap 2> /tmp/dump & echo $!')).trim();
    while (!(await counted()).running) {
      assert.equal((await s.run(`kill -0 ${pid}`)).rc, 0, await s.mustRun('cat /tmp/dump'));
    }
    const sender = await PktGen.start(runDir, 'vale0:x', ['-f', 'tx', '-n', '2000', '-R', '1000', '-l', '100']);
    assert.equal((await sender.result()).packets, 2000);
    // All that has come is in the file: its header, and 16 bytes in front of each packet.
    await until('it has written what it saw', async () => {
      const now = await counted();
      const bytes = 24 + 16 * (now.seen - first.seen) + now.bytes - first.bytes;
      return now.seen > first.seen && Number(await s.mustRun('wc -c < /tmp/seen.pcap')) >= bytes;
    });
    await s.mustRun(`kill -INT ${pid}; while kill -0 ${pid} 2>/dev/null; do sleep 0.1; done`);
    const last = await counted();
    const [arrived, seen, lost] = [last.arrived - first.arrived, last.seen - first.seen, last.lost - first.lost];
    assert.ok(arrived >= 2000 && seen > 1000, `${arrived} packets arrived, ${seen} of them were seen`);
    assert.equal(seen + lost, arrived, 'what arrived at the port arrived at its monitor, or was counted there');
    const [, captured] = /(\d+) packets captured/.exec(await s.mustRun('cat /tmp/dump')) ?? [];
    assert.equal(Number(captured), seen);
    const file = Number(await s.mustRun('wc -c < /tmp/seen.pcap'));
    assert.ok(file > seen * 100, `${file} bytes of packets`);
  });

  if (long) {
    for (const [ofV, ofS] of [
      [12, 0],
      [0, 12],
      [0, 0],
    ] as const) {
      test(`ping, and TCP in both directions, between machines with headers of ${ofV} and ${ofS} bytes`, async () => {
        await stack.down();
        stack = await MachineStack.up(v, 'ptnet:0', '10.7.0.1', '--vnet-hdr', ofV > 0 ? '1' : '0');
        const other = await MachineStack.up(s, 'ptnet:0', '10.7.0.2', '--vnet-hdr', ofS > 0 ? '1' : '0');
        assert.match(stack.said, new RegExp(`header of ${ofV} bytes`));
        assert.match(other.said, new RegExp(`header of ${ofS} bytes`));
        await talk(stack, other, BYTES);
        await other.down();
      });
    }
  }
});
