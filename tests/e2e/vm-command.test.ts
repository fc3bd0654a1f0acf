/** `ptnet vm NAME -- QEMU`: starts it with the VM's devices, passes signals on, ends as it does. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { PtnetDaemon, PtnetProcess, root, until } from './ptnet.ts';

/** A machine without a disk: its firmware says its name on stdout, finds the devices and then waits. */
const DEBUG = ['-chardev', 'stdio,id=debug', '-device', 'isa-debugcon,iobase=0x402,chardev=debug'];
const BARE = ['-accel', 'tcg', '-m', '128', '-nodefaults', '-display', 'none', ...DEBUG];

describe('ptnet vm', { concurrency: false }, () => {
  const dir = mkdtempSync(join(tmpdir(), 'ptnet-vm-'));
  const runDir = join(dir, 'run');
  let daemon: PtnetDaemon;
  let qemu: string;
  let running: PtnetProcess | undefined;

  before(async () => {
    qemu = execFileSync(join(root, 'tools/get-qemu'), { encoding: 'utf8' }).trim();
    daemon = await PtnetDaemon.start({ runDir, vms: { fw: { ports: ['vale0:fw', 'vale1:fw@other'] } } });
  });

  after(async () => {
    await running?.end('SIGTERM');
    await daemon?.end('SIGTERM');
    rmSync(dir, { recursive: true, force: true });
  });

  const attached = async (): Promise<boolean[]> =>
    Promise.all(['vale0:fw', 'vale1:fw'].map(async (port) => (await daemon.port(port)).attached));

  const becomes = (wanted: boolean): Promise<void> =>
    until(`attached ${wanted}`, async () => {
      assert.ok(!wanted || running?.child.exitCode === null, running?.stderr);
      return (await attached()).every((a) => a === wanted);
    });

  const start = async (...flags: string[]): Promise<PtnetProcess> => {
    running = new PtnetProcess(['vm', 'fw', '--run-dir', runDir, ...flags, '--', qemu, ...BARE]);
    await becomes(true);
    await running.says(/SeaBIOS/); // before, a signal would end QEMU as it ends any program
    return running;
  };

  /** Process identifiers of a process's children. */
  const children = (parent: number): number[] =>
    readdirSync('/proc')
      .filter((name) => /^\d+$/.test(name))
      .map(Number)
      .filter((pid) => {
        try {
          return readFileSync(`/proc/${pid}/stat`, 'latin1').split(') ')[1]!.split(' ')[1] === String(parent);
        } catch {
          return false; // it has ended
        }
      });

  test('QEMU runs with two ports in two regions; SIGTERM reaches it, and it ends in order', async () => {
    const vm = await start();
    vm.child.kill('SIGTERM');
    assert.equal(await vm.exited, 0, vm.stderr);
    await becomes(false);
  });

  test('QEMU is killed: ptnet says so and ends with 128 + 9; the sockets take the next one, with an IOMMU', async () => {
    const vm = await start();
    const [pid] = children(vm.child.pid!);
    assert.ok(pid !== undefined);
    process.kill(pid, 'SIGKILL');
    assert.equal(await vm.exited, 137);
    assert.match(vm.stderr, /ptnet: VM fw: QEMU was ended by SIGKILL/);
    await becomes(false);
    const again = await start('--iommu');
    again.child.kill('SIGINT');
    assert.equal(await again.exited, 0, again.stderr);
  });

  test('QEMU that ends with an error: its status', async () => {
    await becomes(false);
    const vm = new PtnetProcess(['vm', 'fw', '--run-dir', runDir, '--', qemu, ...BARE, '-device', 'no-such-device']);
    assert.equal(await vm.exited, 1);
    assert.match(vm.stderr, /no-such-device[\s\S]*ptnet: VM fw: QEMU ended with status 1/);
  });
});
