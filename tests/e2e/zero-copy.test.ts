/**
 * AF_XDP zero copy: a daemon in a virtual machine that has two emulated cards (igb, whose driver has it since Linux 6.14), its
 * region on huge pages. Frames that come from the one card's network go out to the other's, each as it was (docs/nics.md).
 */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import type { DaemonStatus, PortStatus } from '../../src/abi/index.ts';
import { imageWithPtnet } from './machines.ts';
import { QemuGuest } from './qemu.ts';

const long = process.env['PTNET_LONG'] === '1';
const FRAMES = 2000;
/** Frames on their way at a time: fewer than any ring has. */
const WINDOW = 64;
const RUN_DIR = '/tmp/ptnet';

/** The network of a card: QEMU's end of it is a stream, each frame after its length. */
class Network {
  readonly path: string;
  readonly frames: Buffer[] = [];
  readonly #server: Server;
  #socket: Socket | undefined;
  #rest = Buffer.alloc(0);

  constructor(path: string) {
    this.path = path;
    this.#server = createServer((socket) => {
      this.#socket = socket;
      socket.on('data', (bytes) => this.#received(bytes));
      socket.on('error', () => undefined); // QEMU was ended
    }).listen(path);
  }

  send(bytes: Buffer): void {
    const length = Buffer.alloc(4);
    length.writeUInt32BE(bytes.length);
    this.#socket!.write(Buffer.concat([length, bytes]));
  }

  #received(bytes: Buffer): void {
    this.#rest = Buffer.concat([this.#rest, bytes]);
    while (this.#rest.length >= 4 && this.#rest.length >= 4 + this.#rest.readUInt32BE(0)) {
      const end = 4 + this.#rest.readUInt32BE(0);
      this.frames.push(this.#rest.subarray(4, end));
      this.#rest = this.#rest.subarray(end);
    }
  }

  async close(): Promise<void> {
    this.#socket?.destroy();
    if (this.#server.listening) await once(this.#server.close(), 'close');
  }
}

/** A frame with a number, to an address of nobody's. */
function frame(number: number): Buffer {
  const bytes = Buffer.alloc(60 + ((number * 97) % 1455), number);
  Buffer.from('02000000000202000000000188b5', 'hex').copy(bytes);
  bytes.writeUInt32BE(number, 14);
  return bytes;
}

// It boots a machine with another kernel.
if (long)
  describe('AF_XDP zero copy', { concurrency: false }, () => {
    const dir = mkdtempSync(join(tmpdir(), 'ptnet-e2e-'));
    const networks = [0, 1].map((i) => new Network(join(dir, `net${i}`))) as [Network, Network];
    let guest: QemuGuest;

    before(async () => {
      const image = await imageWithPtnet(dir, true);
      const cards = networks.flatMap(({ path }, i) => [
        '-netdev',
        `stream,id=n${i},server=off,addr.type=unix,addr.path=${path}`,
        // An igb has virtual functions, which need a bus of their own.
        '-device',
        `pcie-root-port,id=p${i},chassis=${i + 1}`,
        '-device',
        `igb,id=card${i},netdev=n${i},bus=p${i}`,
      ]);
      guest = await QemuGuest.start({
        ...image,
        machine: 'q35',
        memoryMiB: 1024,
        extraArgs: cards,
        append: 'hugepages=24',
      });
      await guest.waitReady();
      await guest.mustRun('modprobe igb');
      for (const i of [0, 1]) {
        await guest.mustRun(`echo 1 > /proc/sys/net/ipv6/conf/eth${i}/disable_ipv6; ip link set eth${i} up`);
      }
      const sizes = 'buffers: 6144, interfaces: 8, rings: 16';
      const regions = `regions: {huge: {${sizes}, hugePages: true}, plain: {${sizes}}}`;
      await guest.mustRun(`echo '${regions}' > /tmp/ptnet.yaml`);
      await guest.mustRun(`ptnet host --config /tmp/ptnet.yaml --run-dir ${RUN_DIR} > /tmp/host.log 2>&1 &`);
      await guest.mustRun('until grep -q "runs in" /tmp/host.log; do sleep 0.2; done', 60_000);
    });

    after(async () => {
      await guest?.close();
      for (const network of networks) await network.close();
      rmSync(dir, { recursive: true, force: true });
    });

    /** Resolves when the link of a card is as it is to be (1: up). */
    const carrier = (card: number, value: 0 | 1): Promise<string> =>
      guest.mustRun(`until [ $(cat /sys/class/net/eth${card}/carrier) = ${value} ]; do sleep 0.1; done`, 60_000);

    /** Runs a bridge between the cards, in a region; resolves when its rings run and the links are up (binding resets a card). */
    const bridge = async (region: string): Promise<void> => {
      const ports = [0, 1].map((i) => `-i netmap:eth${i}@${region}`).join(' ');
      await guest.mustRun(
        `ptnet bridge ${ports} --run-dir ${RUN_DIR} > /tmp/bridge.log 2>&1 & echo $! > /tmp/bridge.pid`,
      );
      const up = `[ $(grep -c "@${region}: rings running" /tmp/host.log) -ge 2 ]`;
      await guest.mustRun(`until ${up} || grep ^ptnet: /tmp/bridge.log; do sleep 0.2; done; ${up}`, 120_000);
      for (const card of [0, 1]) await carrier(card, 1);
    };

    /** Ends the bridge; resolves when the daemon has closed its ports. */
    const endBridge = async (signal: string): Promise<void> => {
      await guest.mustRun(`kill -${signal} $(cat /tmp/bridge.pid)`);
      const closed = '[ $(grep -c ": closed" /tmp/host.log) -ge 2 ]';
      await guest.mustRun(`until ${closed}; do sleep 0.2; done; echo > /tmp/host.log`, 60_000);
    };

    const ports = async (): Promise<PortStatus[]> => {
      const list = await guest.mustRun(`ptnet list --json --run-dir ${RUN_DIR}`, 60_000);
      return (JSON.parse(list) as DaemonStatus).domains.flatMap((d) => d.ports);
    };

    /** Frames that a port's user has sent. */
    const sentBy = async (name: string): Promise<number> =>
      (await ports()).find((p) => p.name === name)!.txRings[0]!.packets;

    /** Sends frames into the one network and compares what comes out of the other. */
    const passes = async (from: Network, to: Network): Promise<void> => {
      const sent: Buffer[] = [];
      to.frames.length = 0;
      for (const end = performance.now() + 60_000; to.frames.length < FRAMES; await setTimeout(2)) {
        assert.ok(performance.now() < end, `sent ${sent.length}, received ${to.frames.length}`);
        while (sent.length < FRAMES && sent.length - to.frames.length < WINDOW) {
          const next = frame(sent.length);
          sent.push(next);
          from.send(next);
        }
      }
      assert.deepEqual(to.frames, sent);
    };

    test('igb, its region on huge pages: bound in zero copy; frames pass from card to card unchanged', async () => {
      await bridge('huge');
      for (const { mode, zeroCopy, because } of (await ports()).map((p) => p.interface!)) {
        assert.deepEqual([mode, zeroCopy, because], ['native', true, undefined]);
      }
      assert.match(await guest.mustRun('cat /tmp/host.log'), /interface eth0: AF_XDP, native, zero copy, 1 queues/);
      await passes(networks[0], networks[1]);
      await passes(networks[1], networks[0]);
    });

    test('frames that are sent while the link is down go out when it is up again, though nothing else moves', async () => {
      const [, to] = networks;
      const sent = Array.from({ length: WINDOW }, (_, i) => frame(i));
      to.frames.length = 0;
      const already = await sentBy('netmap:eth1');
      await guest.qmp('set_link', { name: 'card1', up: false });
      await carrier(1, 0);
      for (const bytes of sent) networks[0].send(bytes);
      for (let given = 0; given < already + WINDOW; given = await sentBy('netmap:eth1')) await setTimeout(100);
      assert.equal(to.frames.length, 0);
      await guest.qmp('set_link', { name: 'card1', up: true });
      for (const end = performance.now() + 60_000; to.frames.length < WINDOW; await setTimeout(20)) {
        assert.ok(performance.now() < end, `${to.frames.length} of ${WINDOW} arrived`);
      }
      assert.deepEqual(to.frames, sent);
    });

    test('R19: a user that is killed leaves its buffers with the card; the next one gets whole frames', async () => {
      await endBridge('KILL');
      await bridge('huge');
      await passes(networks[0], networks[1]);
      await endBridge('TERM');
    });

    test('its region on ordinary pages: bound in copy mode, and it says why', async () => {
      await bridge('plain');
      for (const { mode, zeroCopy, because } of (await ports()).map((p) => p.interface!)) {
        assert.deepEqual([mode, zeroCopy], ['native', false]);
        assert.match(because!, /its region lies on ordinary pages/);
      }
      await passes(networks[0], networks[1]);
    });
  });
