/**
 * A whole life of machines and daemon: started in the wrong order, several at once, booting beside paced traffic, paused, the daemon
 * stopped for a while, devices added to a running machine, the daemon ended under its machines. PTNET_LONG=1 waits as long as people do.
 */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { imageWithPtnet, startMachine } from './machines.ts';
import { PktGen, PtnetDaemon, ptnet, reported, until } from './ptnet.ts';
import { type GuestImage, QemuGuest } from './qemu.ts';

const long = process.env['PTNET_LONG'] === '1';
const PAUSE_MS = long ? 30_000 : 3_000;
const STOPPED_MS = long ? 10_000 : 2_000;
/** Packets a second. With 4096 slots, the receiver may wait 4 s for its processor without losing one. */
const RATE = 1000;
const SLOTS = ['-C', '4096'];
const vms = { a: { ports: ['vale0:a'] }, b: { ports: ['vale0:b'] }, c: { ports: ['vale0:c', 'vale1:c'] } };

describe('machines and a daemon, through a whole life', { concurrency: false }, () => {
  const dir = mkdtempSync(join(tmpdir(), 'ptnet-life-'));
  const runDir = join(dir, 'run');
  let image: GuestImage;
  let daemon: PtnetDaemon;
  const guests: Record<string, QemuGuest> = {};

  before(async () => {
    image = await imageWithPtnet(dir);
  });

  after(async () => {
    for (const guest of Object.values(guests)) await guest.close();
    await daemon?.end('SIGTERM');
    rmSync(dir, { recursive: true, force: true });
  });

  const boot = async (name: string): Promise<QemuGuest> => {
    guests[name] = await startMachine(runDir, name, image, ['--memory', '512M']);
    return guests[name];
  };

  const received = async (port: string): Promise<number> => (await daemon.port(port)).rxRings[0]!.packets;

  /** A guest's pkt-gen receives, in the background. */
  const receive = async (name: string): Promise<void> => {
    await guests[name]!.mustRun('ptnet pkt-gen -i ptnet:0 -f rx -N > /tmp/rx 2>&1 &');
    await until('it runs', async () => (await daemon.port(`vale0:${name}`)).running);
  };

  /** What a program in the guest has received, by its own count. */
  const takenBy = async (name: string): Promise<number> => reported(await guests[name]!.mustRun('cat /tmp/rx'));

  test('a machine started before the daemon: ptnet vm says so', async () => {
    const { code, stderr } = await ptnet(['vm', 'a', '--run-dir', runDir, '--', image.qemu]);
    assert.equal(code, 1);
    assert.match(stderr, /^ptnet: .*(no daemon|daemon).*\n$/);
  });

  test('a machine boots (remap storm) while its neighbours exchange paced traffic: nothing is lost', async () => {
    daemon = await PtnetDaemon.start({ runDir, vms });
    const receiver = await PktGen.start(runDir, 'vale0:rx', ['-f', 'rx', ...SLOTS]);
    const sender = await PktGen.start(runDir, 'vale0:tx', ['-f', 'tx', '-R', `${RATE}`, ...SLOTS]);
    await until('packets flow', async () => (await received('vale0:rx')) > 0);
    await Promise.all(['a', 'b', 'c'].map(async (name) => (await boot(name)).waitReady()));
    await sender.end('SIGINT');
    const { packets: sent } = await sender.result();
    const lost = async (): Promise<boolean> =>
      Object.keys((await daemon.port('vale0:rx')).rxRings[0]!.drops).length > 0;
    await until('all are received, or some lost', async () => reported(receiver.stderr) === sent || (await lost()));
    const { drops } = (await daemon.port('vale0:rx')).rxRings[0]!;
    await receiver.end('SIGINT');
    assert.deepEqual(drops, {});
    assert.equal((await receiver.result()).packets, sent);
    assert.ok(sent > RATE);
  });

  test('a machine that runs cannot be started twice', async () => {
    const { code, stderr } = await ptnet(['vm', 'a', '--run-dir', runDir, '--', image.qemu]);
    assert.equal(code, 1);
    assert.match(stderr, /VM a runs already: somebody is connected to its port vale0:a/);
  });

  test(`a machine is paused for ${PAUSE_MS / 1000} s in traffic: others go on, and so does it afterwards`, async () => {
    await receive('a');
    await receive('b');
    const sender = await PktGen.start(runDir, 'vale0:tx', ['-f', 'tx', '-R', '1000']);
    await until('both receive', async () => (await takenBy('a')) > 0 && (await takenBy('b')) > 0);
    await guests['a']!.qmp('stop');
    const atFirst = await takenBy('b');
    await sleep(PAUSE_MS);
    await until('the other machine still receives', async () => (await takenBy('b')) > atFirst);
    const full = async (): Promise<number> => (await daemon.port('vale0:a')).rxRings[0]!.drops['full'] ?? 0;
    await until('its ring is full', async () => (await full()) > 0);
    await guests['a']!.qmp('cont');
    const paused = await takenBy('a');
    await until('it receives again', async () => (await takenBy('a')) > paused + 1024);
    await sender.end('SIGINT');
  });

  test(`the daemon is stopped (SIGSTOP) for ${STOPPED_MS / 1000} s: machines and processes go on with it`, async () => {
    const sender = await PktGen.start(runDir, 'vale0:tx', ['-f', 'tx', '-R', '1000']);
    daemon.child.kill('SIGSTOP');
    // A machine that touches a register waits for the answer, with all that it does.
    const starting = guests['c']!.run('ptnet pkt-gen -i ptnet:1 -f tx -n 10');
    await sleep(STOPPED_MS);
    daemon.child.kill('SIGCONT');
    const { rc, output } = await starting;
    assert.equal(rc, 0, output);
    const atFirst = await takenBy('b');
    await until('packets flow again', async () => (await takenBy('b')) > atFirst);
    assert.equal(await sender.end('SIGINT'), 0);
    for (const name of ['a', 'b']) await guests[name]!.run('killall -INT node');
  });

  test('devices are added to a running machine through QMP, and work', async () => {
    const plain = await QemuGuest.start({ ...image, memoryMiB: 512 });
    await plain.waitReady();
    try {
      await guests['c']!.close();
      await until('its ports are free', async () => !(await daemon.port('vale0:c')).attached);
      for (const [i, path] of (await daemon.sockets('c')).slice(0, 2).entries()) {
        const device = {
          driver: 'vfio-user-pci',
          id: `ptnet${i}`,
          socket: { type: 'unix', path },
          'x-msg-timeout': 60000,
        };
        await plain.qmp('device_add', device);
      }
      await until('the guest finds them', async () => {
        const ids = await plain.mustRun('cat /sys/bus/pci/devices/*/device');
        return ids.includes('0x000c') && ids.includes('0x000d');
      });
      const receiver = await PktGen.start(runDir, 'vale0:rx', ['-f', 'rx', ...SLOTS]);
      const { rc, output } = await plain.run(`ptnet pkt-gen -i ptnet:0 -f tx -n 1000 -R 1000`);
      assert.equal(rc, 0, output);
      await receiver.counted(1000);
      await receiver.end('SIGINT');
      assert.equal((await receiver.result()).packets, 1000);
    } finally {
      await plain.close();
    }
  });

  test('told to stop under its machines: SIGINT warns and names them, a second one ends the daemon', async () => {
    await until('machine c is gone', async () => !(await daemon.port('vale0:c')).attached);
    daemon.child.kill('SIGINT');
    await daemon.says(/not stopped: these VMs run.*: a, b;/);
    assert.equal((await daemon.status()).vms.length, 3);
    daemon.child.kill('SIGINT');
    assert.equal(await daemon.exited, 0, daemon.stderr); // R20: else it had ended itself, with status 1
  });

  test('SIGTERM ends it without asking', async () => {
    for (const guest of Object.values(guests)) await guest.close();
    await daemon.end('SIGTERM');
    daemon = await PtnetDaemon.start({ runDir, vms });
    await (await boot('a')).waitReady();
    daemon.child.kill('SIGTERM');
    assert.equal(await daemon.exited, 0, daemon.stderr);
  });
});
