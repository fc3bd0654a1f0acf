/** The VirtIO network header on ports that are in no switch: TAP interfaces and the host's stack (docs/interface.md). */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { after, before, describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import type { NetmapPort } from '../../src/api/index.ts';
import { NS_MOREFRAG, openPort, POLLIN } from '../../src/api/index.ts';
import { connectVfioUserPci, StrictGuest } from '../../src/guest/index.ts';
import { frameNumber, writeFrame } from './nic-frames.ts';
import { Namespace, NicLab, nicSkip, type Peer } from './nic-lab.ts';
import { arrival, conserves, long, QUIET_MS, send, WINDOW } from './nic-traffic.ts';

const httpPeer = fileURLToPath(new URL('../stack/http-peer.js', import.meta.url));
const FILE = long ? 2 ** 28 : 2 ** 23;

/**
 * Packets that the kernel refused for their checksums or headers, in a namespace. (TcpInErrs counts more: a SYN that was
 * sent again, too.)
 */
async function badSums(ns: Namespace): Promise<number> {
  const { text } = await ns.run('nstat', ['-az', 'TcpInCsumErrors', 'UdpInCsumErrors', 'IpInHdrErrors']);
  return [...text.matchAll(/^\w+Err\w*\s+(\d+)/gm)].reduce((sum, [, n]) => sum + Number(n), 0);
}

async function arrived(receiver: Peer, frames: number): Promise<void> {
  await arrival(receiver, frames);
  assert.equal(receiver.frames, frames, 'frames that arrived');
}

describe('the VirtIO header between a guest’s stack and the host’s', { skip: nicSkip('ping', 'nstat') }, () => {
  let lab: NicLab;
  before(async () => {
    lab = new NicLab();
    await lab.start();
  });
  after(() => lab.close());

  /** A file by HTTP from one namespace to another arrives as it is. */
  async function file(from: Namespace, address: string, to: Namespace): Promise<void> {
    const server = from.spawn(process.execPath, httpPeer, 'server');
    try {
      await once(server.stdout!, 'data');
      const url = `http://${address}:8080/${FILE}`;
      const { text } = await to.run(process.execPath, [httpPeer, 'client', url], 120);
      const expected = await to.run(process.execPath, [httpPeer, 'hash', String(FILE)], 120);
      assert.equal(text, expected.text);
    } finally {
      server.kill();
      await once(server, 'close');
    }
  }

  for (const [what, port, iface] of [
    ['a TAP interface', 'netmap:tap0', 'tap0'],
    ['the host’s stack', 'netmap:veth0^', 'veth0'],
  ] as const) {
    for (const header of [12, 0]) {
      it(`${what}, ${header === 0 ? 'no header: finished frames' : 'header: whole segments'}, both ways`, async () => {
        const guests = new Namespace(`${lab.here.name}-v`);
        const flags = ['--name', 'g0', '--run-dir', lab.runDir, '--vnet-hdr', header === 0 ? '0' : '1'];
        const guest = guests.ptnet('up', port, ...flags, 'inet', '10.79.0.2/24');
        try {
          while (!(await lab.ports()).some((p) => p.name === port && p.running)) await sleep(10);
          lab.here.ip('addr', 'replace', '10.79.0.1/24', 'dev', iface);
          assert.ok(await guests.pings('10.79.0.1', '-s', '4000'));
          await file(guests, '10.79.0.2', lab.here);
          await file(lab.here, '10.79.0.1', guests);
          const { vnetHdrLen, txRings, rxRings } = await lab.port(port);
          assert.equal(vnetHdrLen, header);
          for (const [ring] of [txRings, rxRings]) {
            // "stopped": what the host's stack had to say before the guest was there. "full": a side that had to wait for
            // its processor, which is TCP's to mend.
            const drops = Object.keys(ring!.drops).filter((reason) => reason !== 'stopped' && reason !== 'full');
            assert.deepEqual(drops, []);
            const mean = ring!.bytes / ring!.packets;
            // One way's acknowledgements are fewer than the other one's segments.
            assert.ok(header === 0 ? mean <= 1514 : mean > 1514 + header, `${mean} bytes a frame`);
          }
          assert.equal((await badSums(guests)) + (await badSums(lab.here)), 0, 'checksums');
        } finally {
          guest.kill('SIGINT');
          await once(guest, 'close');
          guests.close();
          await lab.givenBack();
        }
      });
    }
  }

  it('a card has none: a user that asks for it is told 0, and works', async () => {
    for (const bufSize of [2048, 4096]) {
      const port = await openPort('netmap:veth0', { runDir: lab.runDir, vnetHdr: true, bufSize });
      assert.equal(port.vnetHdrLen, 0);
      await conserves(lab, port, 300, { frames: 500 });
      await port.close();
    }
  });
});

describe('frames with the VirtIO header', { skip: nicSkip() }, () => {
  let lab: NicLab;
  let port: NetmapPort;
  before(async () => {
    lab = new NicLab();
    await lab.start();
    port = await openPort('netmap:tap1', { runDir: lab.runDir, vnetHdr: true });
  });
  after(async () => {
    await port.close();
    await lab.close();
  });

  /** Sends one frame, of which these are header and first bytes. */
  function sendRaw(bytes: readonly number[], length: number): void {
    const ring = port.txRings[0]!;
    const ofs = port.txRings[0]!.bufOfs(ring.head);
    port.m.u8.fill(0, ofs, ofs + length);
    port.m.u8.set(bytes.slice(0, length), ofs);
    ring.setLen(ring.head, length);
    ring.setFlags(ring.head, 0);
    ring.head = ring.cur = ring.next(ring.head);
    port.txsync();
  }

  it('R5: malformed ones from the user are refused by the kernel and counted; those around them arrive', async () => {
    const header = (flags: number, gso: number, hdrLen: number, gsoSize: number, start = 0, offset = 0): number[] => {
      const fields = [hdrLen, gsoSize, start, offset].flatMap((n) => [n & 0xff, n >> 8]);
      return [flags, gso, ...fields, 0, 0];
    };
    const malformed: readonly (readonly [number[], number])[] = [
      [header(0, 2, 0, 1000), 112], // no such type
      [header(0, 0x7f, 0, 1000), 112],
      [header(0, 1, 54, 0), 112], // segments of no bytes
      [header(1, 0, 0, 0, 99, 16), 112], // a checksum beyond the frame
      [header(1, 0, 0, 0, 65535, 65535), 112],
      [header(0, 1, 65535, 1000), 112], // headers longer than the frame
      [header(0, 0, 0, 0), 12], // a header alone
      [header(0, 0, 0, 0), 5], // not even that
    ];
    const receiver = await lab.here.peer('receive', 'tap1').ready();
    const dropped = async (): Promise<number> => (await lab.port('netmap:tap1')).txRings[0]!.drops['dst'] ?? 0;
    for (const [i, [bytes, length]] of malformed.entries()) {
      sendRaw(bytes, length);
      const good = new Uint8Array(200);
      writeFrame(good, 200, i);
      sendRaw([...new Uint8Array(12), ...good], 212);
      await arrived(receiver, i + 1);
      assert.equal(await dropped(), i + 1, `header ${i}`);
    }
    const { frames, wrong } = await receiver.result('SIGINT');
    assert.deepEqual([frames, wrong], [malformed.length, 0]);
  });

  it('R9: num_buffers is 0, whatever was in the buffer', async () => {
    const ring = port.rxRings[0]!;
    for (let i = 0; i < ring.numSlots; i++) port.m.u8.fill(0xff, ring.bufOfs(i), ring.bufOfs(i) + 64);
    const sender = await lab.here.peer('send', 'tap1', '500', '100', String(WINDOW)).ready();
    const done = sender.result();
    let seen = 0;
    while (seen < 500 && (await port.wait(POLLIN, { timeoutMs: QUIET_MS })) > 0) {
      for (; ring.space() > 0; ring.head = ring.cur = ring.next(ring.head)) {
        const frame = port.m.u8.subarray(ring.bufOfs(ring.head), ring.bufOfs(ring.head) + ring.len(ring.head));
        if (frameNumber(frame.slice(12), frame.length - 12) === -1) continue;
        seen++;
        assert.deepEqual([...frame.subarray(0, 12)], Array(12).fill(0));
      }
      port.rxsync();
      sender.arrived(seen);
    }
    await done;
    assert.equal(seen, 500);
  });

  it('after the interface’s MTU was raised, frames arrive whole, but for the first ones, which are counted, not cut', async () => {
    const short = await openPort('netmap:tap2', { runDir: lab.runDir });
    lab.here.ip('link', 'set', 'tap2', 'mtu', '9000');
    const had = (await lab.port('netmap:tap2')).rxRings[0]!.drops['full'] ?? 0;
    const sender = await lab.here.peer('send', 'tap2', '100', '5000', '0').ready();
    await sender.result();
    const lost = async (): Promise<number> => ((await lab.port('netmap:tap2')).rxRings[0]!.drops['full'] ?? 0) - had;
    const ring = short.rxRings[0]!;
    let whole = 0;
    while (whole + (await lost()) < 100) {
      short.rxsync();
      while (ring.space() > 0) {
        const pieces: Uint8Array[] = [];
        for (let more = true; more; ring.head = ring.cur = ring.next(ring.head)) {
          const at = ring.bufOfs(ring.head);
          pieces.push(short.m.u8.slice(at, at + ring.len(ring.head)));
          more = (ring.flags(ring.head) & NS_MOREFRAG) !== 0;
        }
        const frame = Buffer.concat(pieces);
        const number = frameNumber(frame, frame.length);
        if (number === -1) continue; // the stack's own
        assert.ok(number >= 0 && frame.length === 5000, `frame ${number} of ${frame.length} bytes`);
        whole++;
      }
    }
    assert.ok(whole >= 90, `${whole} of 100 arrived`);
    await send(short, 1, 100);
    await short.close();
  });
});

describe('the header’s length changes while frames are on their way', { skip: nicSkip() }, () => {
  let lab: NicLab;
  before(async () => {
    lab = new NicLab();
    await lab.start({ vms: { v: { ports: ['netmap:tap3'] } } });
    await lab.here.run('sysctl', ['-qw', 'net.ipv6.conf.tap3.disable_ipv6=1']);
  });
  after(() => lab.close());

  for (const driver of ['freebsd', 'linux'] as const) {
    it(`R6, R18, R19: ${driver}: every frame that is seen is one that was sent, on both sides`, async () => {
      const memdev = await connectVfioUserPci(`${lab.runDir}/vm/v/memdev.sock`, 'memdev');
      const ptnet = await connectVfioUserPci(`${lab.runDir}/vm/v/ptnet0.sock`, 'ptnet');
      const guest = new StrictGuest(memdev, ptnet, { driver });
      await guest.attach();
      const frame = new Uint8Array(300);
      let next = 0;
      const take = async (): Promise<number> => {
        const frames = await guest.receive();
        for (const f of frames) {
          // Neighbour discovery of IPv6 may have begun before it was switched off.
          if (f[12] === 0x86 && f[13] === 0xdd) continue;
          assert.ok(
            frameNumber(f.slice(), f.length) >= 0,
            `${guest.vnetHdrLen}: ${Buffer.from(f.subarray(0, 40)).toString('hex')}`,
          );
          assert.equal(f.length, 1400);
        }
        return frames.length;
      };
      const receiver = await lab.here.peer('receive', 'tap3').ready();
      const ended = new AbortController();
      const lengths = [12, 0, 10, 12, 10, 0, 0, 12, 12];
      const flood = async (): Promise<void> => {
        while (!ended.signal.aborted) {
          const sender = await lab.here.peer('send', 'tap3', '2000', '1400', '0').ready();
          await sender.result();
        }
      };
      const flooding = flood();
      for (let round = 0; round < (long ? 10 : 2) * lengths.length; round++) {
        guest.vnetHdrWanted = lengths[round % lengths.length]!;
        await guest.up();
        assert.equal(guest.vnetHdrLen, guest.vnetHdrWanted);
        for (let n = 0, some = 0; n < 50; n += some) {
          some = await take();
          if (some === 0) await guest.interrupted([guest.rxRing(0)], 1000);
        }
        // Some more come and stay in the ring; some are sent and not waited for.
        const batch = Array.from({ length: 20 }, () => {
          writeFrame(frame, 300, next++);
          return frame.slice();
        });
        assert.equal(await guest.transmit(batch), batch.length);
        await guest.down();
      }
      ended.abort();
      await flooding;
      await arrived(receiver, next);
      const { frames, wrong, disorder } = await receiver.result('SIGINT');
      assert.deepEqual([frames, wrong, disorder], [next, 0, 0]);
      guest.abandon();
      await ptnet.close();
      await memdev.close();
    });
  }
});
