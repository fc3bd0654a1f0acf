/**
 * A network card and a virtual machine: the card passed through to it directly (netmap:veth0), and as a member of a VALE
 * switch that the machine's other port is on. Over veth pairs between network namespaces, as tests/nic.
 */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { NicLab, nicSkip } from '../nic/nic-lab.ts';
import { imageWithPtnet, startMachine } from './machines.ts';
import type { QemuGuest } from './qemu.ts';
import { HostStack, MachineStack, talk } from './stacks.ts';

const long = process.env['PTNET_LONG'] === '1';
const BYTES = (long ? 64 : 4) * 2 ** 20;
const FRAMES = 2000;

describe('a network card and a virtual machine', { concurrency: false, skip: nicSkip('ping') }, () => {
  const dir = mkdtempSync(join(tmpdir(), 'ptnet-e2e-'));
  let lab: NicLab;
  let guest: QemuGuest;
  const far = (address: string): HostStack =>
    new HostStack(address, (program, args) => lab.there.spawn(program, ...args));

  before(async () => {
    const image = await imageWithPtnet(dir);
    lab = new NicLab();
    // veth2 has another cable of the machine's: its other end, too, does what a card would do.
    const other = ['peer', 'name', 'veth3', 'netns', lab.there.name];
    lab.here.ip('link', 'add', 'veth2', 'type', 'veth', ...other);
    lab.here.ip('link', 'set', 'veth2', 'up');
    lab.there.ip('link', 'set', 'veth3', 'up');
    lab.here.linksUp('veth2');
    lab.there.linksUp('veth3');
    lab.there.ethtool('-K', 'veth3', 'tx', 'off', 'txvlan', 'off');
    lab.there.ip('address', 'add', '10.9.1.1/24', 'dev', 'veth1');
    lab.there.ip('address', 'add', '10.9.3.1/24', 'dev', 'veth3');
    await lab.start({ vms: { n: { ports: ['netmap:veth0', 'vale0:n'] } } });
    guest = await startMachine(lab.runDir, 'n', image, ['--iommu', '--memory', '640M']);
    await guest.waitReady();
  });

  after(async () => {
    await guest?.close();
    await lab?.close();
    rmSync(dir, { recursive: true, force: true });
  });

  test('passed through: ping and TCP between the card’s network and the machine’s stack', async () => {
    const stack = await MachineStack.up(guest, 'ptnet:0', '10.9.1.2');
    assert.match(stack.said, /header of 0 bytes/, 'a card has no VirtIO header');
    await talk(far('10.9.1.1'), stack, BYTES);
    await stack.down();
  });

  test('in a VALE switch: ping and TCP between the card’s network and the machine’s stack', async () => {
    await lab.valeCtl('a', 'vale0:veth2');
    const stack = await MachineStack.up(guest, 'ptnet:1', '10.9.3.2');
    assert.match(stack.said, /header of 12 bytes/, 'the switch translates');
    await talk(far('10.9.3.1'), stack, BYTES);
    await stack.down();
    await lab.valeCtl('d', 'vale0:veth2');
  });

  // Three more programs to be started on an emulated processor.
  if (long) {
    const received = (iface: string): number => {
      const [link] = JSON.parse(lab.there.ip('-j', '-s', 'link', 'show', iface)) as [
        { stats64: { rx: { packets: number } } },
      ];
      return link.stats64.rx.packets;
    };

    /** Frames that came to the card: for the machine, dropped there, lost before. */
    const came = async (): Promise<{ packets: number; lost: number }> => {
      const { rxRings } = await lab.port('netmap:veth0');
      const sum = (numbers: readonly number[]): number => numbers.reduce((a, b) => a + b, 0);
      const drops = rxRings.flatMap((r) => Object.values(r.drops));
      return { packets: sum(rxRings.map((r) => r.packets)), lost: sum(drops) + lab.lost() };
    };

    test('passed through: counted frames in both directions', async () => {
      lab.there.ip('address', 'flush', 'dev', 'veth1'); // the kernel there has nothing to say now
      const atFirst = received('veth1');
      const sent = await guest.mustRun(`ptnet pkt-gen -i ptnet:0 -f tx -n ${FRAMES} -R ${FRAMES} --json`, 60_000);
      assert.match(sent, new RegExp(`"packets":${FRAMES}\\b`));
      assert.ok(
        received('veth1') - atFirst >= FRAMES,
        `${received('veth1') - atFirst} of ${FRAMES} frames came out of the card`,
      );
      const pid = (await guest.mustRun('ptnet pkt-gen -i ptnet:0 -f rx --json > /tmp/rx 2>&1 & echo $!')).trim();
      while (!(await lab.port('netmap:veth0')).running) {
        assert.equal((await guest.run(`kill -0 ${pid}`)).rc, 0, await guest.mustRun('cat /tmp/rx'));
      }
      const start = await came();
      const sender = await lab.there.peer('send', 'veth1', `${FRAMES}`, '60', '128').ready();
      const end = performance.now() + 60_000;
      for (let n = 0; n < FRAMES; sender.arrived(n)) {
        const now = await came();
        n = now.packets + now.lost - start.packets - start.lost;
        assert.ok(performance.now() < end, `${n} of ${FRAMES} frames came to the card in 60 s`);
      }
      const { sent: all } = await sender.result();
      await guest.run('sleep 1');
      await guest.mustRun(`kill -INT ${pid}; while kill -0 ${pid} 2>/dev/null; do sleep 0.1; done`);
      const packets = Number(/"packets":(\d+)/.exec(await guest.mustRun('cat /tmp/rx'))?.[1]);
      assert.equal(packets + (await came()).lost - start.lost, all, 'received + dropped at the full ring');
      assert.ok(packets > FRAMES / 2, `${packets} of ${FRAMES}`);
    });
  }
});
