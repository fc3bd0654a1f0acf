/**
 * The traffic paths of a strict guest: `ifnet`, as ptnet_drain_transmit_queue and ptnet_rx_eof (if_ptnet.c) or
 * ptnet_start_xmit and ptnet_rx_poll (netmap_ptnet.c) have it, and `netmap`, which is the same in both drivers
 * (netmap_pt_guest_txsync and netmap_pt_guest_rxsync). The order of CSB accesses, and where a barrier stands, are theirs.
 */
import { NAF_FORCE_READ, NAF_FORCE_RECLAIM, NR_DIR_RX } from '../abi/index.ts';
import type { StrictGuest } from './strict-guest.ts';
import type { StrictRing } from './strict-ring.ts';
import { must, stldBarrier } from './strict-ring.ts';

export interface Traffic {
  /** What the driver does once its rings run. */
  start?(): Promise<void>;
  /** Returns how many frames (VirtIO header included) the ring took. */
  transmit(ring: StrictRing, frames: readonly Uint8Array[]): Promise<number>;
  /** At most a driver's budget of frames; who got any calls again. */
  receive(ring: StrictRing): Promise<Uint8Array[]>;
}

const PTNET_RX_BUDGET = 512;
const PTNET_TX_BATCH = 64;
const NAPI_POLL_WEIGHT = 64;

/** @param minTxSpace free slots without which nothing is sent */
export function ifnetTraffic(guest: StrictGuest, minTxSpace: number): Traffic {
  return guest.options.driver === 'freebsd' ? freebsdTraffic(guest, minTxSpace) : linuxTraffic(guest, minTxSpace);
}

/** ptnet_ring_update: tells the host, kicks it if it wants that. No barrier between head and kern_need_kick (R12). */
async function ringUpdate(guest: StrictGuest, ring: StrictRing, head: number, syncFlags: number): Promise<void> {
  ring.setHeadCur(head);
  ring.applWrite();
  if (ring.kernNeedKick) await guest.kick(ring, syncFlags);
}

/** Asks for an interrupt and looks once more; returns whether there is something after all, and then takes it back. */
function armAndLook(ring: StrictRing, ready: () => boolean): boolean {
  ring.applNeedKick = 1;
  stldBarrier();
  ring.applRead();
  if (ready()) ring.applNeedKick = 0;
  return ready();
}

/** The packet at head. Both drivers take the VirtIO header from its first slot. */
function getPacket(guest: StrictGuest, ring: StrictRing, head: number): { frame: Uint8Array; head: number } {
  const { len } = ring.slot(head);
  must(len >= guest.vnetHdrLen, () => {
    return `${ring.name} slot ${head}: ${len} bytes, the VirtIO header of ${guest.vnetHdrLen} crosses the slot`;
  });
  return ring.getFrame(head);
}

function freebsdTraffic(guest: StrictGuest, minTxSpace: number): Traffic {
  return {
    async transmit(ring, frames) {
      let { head } = ring;
      let batch = 0;
      let count = 0;
      const space = (): boolean => ring.distance(head, ring.tail) >= minTxSpace;
      for (const frame of frames) {
        if (!space()) {
          ring.applRead();
          if (!space() && !armAndLook(ring, space)) break;
        }
        head = ring.putFrame(frame, head);
        count++;
        if (++batch < PTNET_TX_BATCH) continue;
        await ringUpdate(guest, ring, head, NAF_FORCE_RECLAIM);
        batch = 0;
      }
      if (batch > 0) await ringUpdate(guest, ring, head, NAF_FORCE_RECLAIM);
      return count;
    },

    async receive(ring) {
      const frames: Uint8Array[] = [];
      while (frames.length < PTNET_RX_BUDGET) {
        const some = (): boolean => ring.head !== ring.tail;
        if (!some()) {
          ring.applRead();
          if (!some() && !armAndLook(ring, some)) break;
        }
        const { frame, head } = getPacket(guest, ring, ring.head);
        await ringUpdate(guest, ring, head, NAF_FORCE_READ);
        frames.push(frame);
      }
      return frames;
    },
  };
}

function linuxTraffic(guest: StrictGuest, minTxSpace: number): Traffic {
  /** Frames that NAPI took while the interface went up. */
  const early = new Map<StrictRing, Uint8Array[]>();

  /** ptnet_rx_poll. Returns whether NAPI is to call it again. */
  async function poll(ring: StrictRing, frames: Uint8Array[]): Promise<boolean> {
    let { head } = ring;
    let work = 0;
    let again = false;
    ring.applRead();
    for (; work < NAPI_POLL_WEIGHT && head !== ring.tail; work++) {
      const packet = getPacket(guest, ring, head);
      ({ head } = packet);
      frames.push(packet.frame);
    }
    if (work < NAPI_POLL_WEIGHT) again = armAndLook(ring, () => head !== ring.tail);
    if (work > 0) await ringUpdate(guest, ring, head, NAF_FORCE_READ);
    return again || work === NAPI_POLL_WEIGHT;
  }

  async function receive(ring: StrictRing): Promise<Uint8Array[]> {
    const frames = early.get(ring) ?? [];
    early.delete(ring);
    ring.applNeedKick = 0; // ptnet_napi_schedule
    while ((await poll(ring, frames)) && frames.length < PTNET_RX_BUDGET);
    return frames;
  }

  return {
    async start() {
      const rxRings = guest.rings.filter((ring) => ring.at.dir === NR_DIR_RX);
      for (const ring of rxRings) early.set(ring, await receive(ring));
    },

    async transmit(ring, frames) {
      const space = (): boolean => ring.space >= minTxSpace;
      let count = 0;
      for (const frame of frames) {
        ring.applRead();
        if (!space()) break; // NETDEV_TX_BUSY: the queue was stopped, with interrupts on
        await ringUpdate(guest, ring, ring.putFrame(frame, ring.head), NAF_FORCE_RECLAIM);
        count++;
        if (!space() && !armAndLook(ring, space)) break;
      }
      return count;
    },

    receive,
  };
}

/** An application on the guest's netmap port: NIOCTXSYNC after filling slots, NIOCRXSYNC before reading. */
export function netmapTraffic(guest: StrictGuest): Traffic {
  const blocked = (ring: StrictRing): boolean => ring.cur === ring.tail;
  const open = (ring: StrictRing) => (): boolean => !blocked(ring);

  async function txsync(ring: StrictRing): Promise<void> {
    ring.applNeedKick = 0;
    ring.applWrite();
    // NIOCTXSYNC passes NAF_FORCE_RECLAIM, which forces a kick (R16) and a look at hwtail.
    ring.applRead();
    if (blocked(ring)) armAndLook(ring, open(ring));
    await guest.kick(ring, NAF_FORCE_RECLAIM);
  }

  async function rxsync(ring: StrictRing): Promise<void> {
    ring.applNeedKick = 0;
    ring.applRead();
    if (ring.head !== ring.hwcur) ring.applWrite();
    if (blocked(ring)) armAndLook(ring, open(ring));
    if ((ring.head !== ring.hwcur || blocked(ring)) && ring.kernNeedKick) await guest.kick(ring, NAF_FORCE_READ);
  }

  return {
    async transmit(ring, frames) {
      let { head } = ring;
      let count = 0;
      for (const frame of frames) {
        if (ring.distance(head, ring.tail) < Math.ceil(frame.length / ring.at.bufSize)) break;
        head = ring.putFrame(frame, head);
        count++;
      }
      // Who could not place everything waits for room: cur at tail.
      ring.setHeadCur(head, count < frames.length ? ring.tail : head);
      await txsync(ring);
      return count;
    },

    async receive(ring) {
      await rxsync(ring);
      const frames: Uint8Array[] = [];
      let { head } = ring;
      while (head !== ring.tail) {
        const packet = getPacket(guest, ring, head);
        ({ head } = packet);
        frames.push(packet.frame);
      }
      ring.setHeadCur(head);
      return frames;
    },
  };
}
