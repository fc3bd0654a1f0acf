/** The device sockets of a daemon with its real threads: who is served, who is refused, and what a hostile client costs others. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import { netmap_ring, nm_csb_atok } from '../../../src/abi/index.ts';
import { closeFd, connectUnix, eventfd, eventfdRead } from '../../../src/os/index.ts';
import { fill, makeBlocking } from '../device/hostile.ts';
import { RawGuest, SharedFile } from '../device/rig.ts';
import { type DaemonLab, eventually, openFds, withDaemon } from './lab.ts';

const TWO = 'vms: { a: { ports: [vale0:a] }, b: { ports: [vale0:b] }, c: { ports: [vale0:c] } }';

/** Puts one broadcast frame into a guest's tx ring, by the layout that its registers tell. */
class Sender {
  readonly guest: RawGuest;
  readonly #region: SharedFile;
  readonly #ring: number;
  readonly #bufs: number;
  head = 0;

  private constructor(guest: RawGuest, region: SharedFile, ring: number, bufs: number) {
    this.guest = guest;
    this.#region = region;
    this.#ring = ring;
    this.#bufs = bufs;
  }

  static async of(lab: DaemonLab, vm: string): Promise<Sender> {
    const { VfioUserClient } = await import('../../../src/vfio-user/index.ts');
    const memdev = await VfioUserClient.connect(`${lab.dir}/vm/${vm}/memdev.sock`);
    await memdev.negotiate();
    const registers = new RawGuest(memdev);
    const bufs = await registers.read(88);
    const { size, fds } = await memdev.regionInfo(1);
    const guest = await lab.guest(vm);
    await guest.start();
    const nifp = await guest.read(24);
    const region = new SharedFile(fds[0]!, Number(size));
    return new Sender(guest, region, nifp + region.u32(nifp + 56), bufs);
  }

  /** Sends n frames and waits until the host has taken them. */
  async send(n: number): Promise<void> {
    for (let k = 0; k < n; k++) {
      const slot = this.#ring + 256 + 16 * this.head;
      const bufSize = this.#region.u32(this.#ring + netmap_ring.ofs.nr_buf_size);
      this.#region.write(this.#bufs + bufSize * this.#region.u32(slot), new Uint8Array(60).fill(255));
      this.#region.setU32(slot + 4, 60);
      this.head = (this.head + 1) % 1024;
      this.guest.setHead(0, this.head);
      await this.guest.write(128, 0);
    }
    await eventually('the host takes what was sent', () => this.guest.hwcur(0) === this.head);
  }
}

test('R15: an interrupt eventfd that is full and blocking: the write is freed, its client disconnected, its neighbours go on', () =>
  withDaemon(TWO, async (lab) => {
    const sender = await Sender.of(lab, 'a');
    const good = await lab.guest('b');
    const bad = await lab.guest('c');
    const fds = { good: eventfd(), bad: eventfd() };
    for (const [guest, fd] of [
      [good, fds.good],
      [bad, fds.bad],
    ] as const) {
      await guest.client.setIrqs({ index: 2, start: 0, fds: [fd, fd] });
      await guest.start();
    }
    fill(fds.bad);
    makeBlocking(fds.bad);
    const gone = bad.client.closed;
    await sender.send(1);
    assert.match(await gone, /end|closed|reset/i);
    await lab.waitForLog(/a datapath thread hung on writing descriptor \d+; freed it/);
    await lab.waitForLog(/c.*interrupt eventfd is full and blocking: writing it took more than 10 ms \(R15\)/);
    await sender.send(100);
    assert.ok(eventfdRead(fds.good) >= 1n);
    assert.equal(good.hwtail(1), 101, 'nothing is lost for the neighbour');
    await eventually('the device is free', () => lab.port('vale0:c')?.attached === false);
    const next = await lab.guest('c');
    await next.start();
    await sender.send(1);
    await eventually('a new client of the device receives', () => next.hwtail(1) === 1);
  }));

test('R15: the same, with others who wait to write the same eventfd', () =>
  withDaemon(TWO, async (lab) => {
    const sender = await Sender.of(lab, 'a');
    const bad = await lab.guest('c');
    const fd = eventfd();
    await bad.client.setIrqs({ index: 2, start: 0, fds: [fd, fd] });
    await bad.start();
    fill(fd);
    makeBlocking(fd);
    const { Worker } = await import('node:worker_threads');
    const url = new URL('eventfd-hog.js', import.meta.url);
    const hogs = Array.from({ length: 3 }, () => new Worker(url, { workerData: fd }));
    let alive = hogs.length;
    for (const w of hogs) w.once('exit', () => alive--);
    await Promise.all(hogs.map((w) => new Promise((resolve) => w.once('message', resolve))));
    const gone = bad.client.closed;
    await sender.send(1);
    await gone;
    await sender.send(50);
    // Lets the hogs end: they wait in write.
    const { eventfdDrain } = await import('../../../src/os/index.ts');
    await eventually('the hogs end', () => {
      eventfdDrain(fd);
      return alive === 0;
    });
  }));

test('a second client of a device is refused; the first keeps it; the next gets it when the first is gone', () =>
  withDaemon(TWO, async (lab) => {
    const first = await lab.guest('a');
    await first.start();
    await assert.rejects(lab.connect('a'), /./);
    await lab.waitForLog(/refused a second client: the device is in use/);
    assert.equal(await first.read(28), 1, 'the first is still served');
    assert.equal(lab.port('vale0:a')?.running, true);
    const waiting = lab.connect('a');
    first.client.close();
    const second = new RawGuest(await waiting, 2);
    await second.start();
    assert.equal(lab.port('vale0:a')?.attached, true);
  }));

test('a client that vanishes at any point of the set-up leaves the device to the next, and no descriptor behind', () =>
  withDaemon(TWO, async (lab) => {
    const steps: ((g: RawGuest) => Promise<unknown>)[] = [
      (g) => g.client.deviceInfo(),
      (g) => g.client.reset(),
      (g) => g.setCommand(7),
      async (g) => (await g.client.regionIoFds(0)).forEach((e, i) => i === 0 && closeFd(e.fd)),
      (g) => g.map(),
      async (g) => {
        const fd = eventfd();
        await g.client.setIrqs({ index: 2, start: 0, fds: [fd, fd] }).finally(() => closeFd(fd));
      },
      (g) => g.setCsb(0x10_0000n, 0x10_1000n),
      async (g) => g.prepare(),
      (g) => g.create(),
      (g) => g.write(128, 0),
      (g) => g.destroy(),
    ];
    const free = (): boolean => lab.port('vale0:a')?.attached === false;
    const baseline: number[] = [];
    for (let round = 0; round < 2; round++) {
      for (let upTo = 0; upTo <= steps.length; upTo++) {
        await eventually('the device is free', free);
        const guest = await lab.guest('a');
        for (const step of steps.slice(0, upTo)) await step(guest);
        // In the middle of the next request, too.
        if (upTo < steps.length) void steps[upTo]!(guest).catch(() => undefined);
        await new Promise((resolve) => setImmediate(resolve));
        guest.client.close();
        guest.memory.close();
      }
      await eventually('the device is free', free);
      await setTimeout(20);
      baseline.push(openFds());
    }
    assert.equal(baseline[1], baseline[0]);
  }));

test('R17: a client that stalls in mid-message or reads no reply costs nobody else anything, and is disconnected', () =>
  withDaemon(TWO, async (lab) => {
    const { MessageSocket } = await import('../../../src/os/index.ts');
    const stalled = connectUnix(`${lab.dir}/vm/c/ptnet0.sock`);
    new MessageSocket(stalled).send(Uint8Array.of(1, 0, 1, 0, 99));
    const sender = await Sender.of(lab, 'a');
    const other = await lab.guest('b');
    await other.start();
    for (let i = 0; i < 50; i++) {
      await sender.send(1);
      assert.equal(await other.read(28), 1);
    }
    assert.equal(other.hwtail(1), 50);
    await lab.waitForLog(/vm c|c ptnet|c:.*left a message unfinished for 5000 ms|c.*left a message unfinished/);
    await eventually('the device is free', () => lab.port('vale0:c')?.attached === false);
    closeFd(stalled);
    await (await lab.guest('c')).start();
  }));

test('a flood of register writes, resets and CREATE/DELETE from one client leaves the others served', () =>
  withDaemon(TWO, async (lab) => {
    const sender = await Sender.of(lab, 'a');
    const other = await lab.guest('b');
    await other.start();
    const flooder = await lab.guest('c');
    await flooder.start();
    const flooding = new AbortController();
    const flood = async (): Promise<void> => {
      for (let i = 0; !flooding.signal.aborted; i++) {
        await Promise.all(Array.from({ length: 50 }, () => flooder.write(44, i % 2 === 0 ? 12 : 0)));
        await flooder.control(2);
        flooder.prepare();
        await flooder.control(1);
      }
    };
    const done = flood();
    for (let i = 0; i < 100; i++) await sender.send(1);
    flooding.abort();
    await done;
    assert.equal(other.hwtail(1), 100);
    assert.equal(other.memory.u32(other.atok(1) + nm_csb_atok.ofs.head), 0);
  }));

test('R21: one client fills no log, neither with CREATEs that are refused nor with rings that start and stop', () =>
  withDaemon(TWO, async (lab) => {
    const said: string[] = [];
    lab.daemon.log.info = ((text: string) => void said.push(text)) as never;
    const guest = await lab.guest('a');
    for (let i = 0; i < 150; i++) await guest.create();
    await guest.start();
    for (let i = 0; i < 150; i++) {
      await guest.destroy();
      guest.prepare();
      await guest.create();
    }
    guest.client.close();
    const next = await lab.guest('a');
    await next.create();
    await next.start();
    await lab.waitForLog(/more refused CREATEs of this client are not logged/);
    await eventually('what the next client does is logged', () => said.at(-1) === 'vale0:a: rings running');
    assert.equal(lab.logged.filter((l) => l.includes('refused with ENXIO')).length, 101);
    assert.equal(said.length, 101);
    assert.match(said[99]!, /rings stopped; further changes of this client are not logged/);
    next.client.close();
  }));
