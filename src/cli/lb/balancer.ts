/**
 * lb's distribution: every packet of the input goes to one pipe of each group, in turn: the first group gets it from the
 * input, the next one when the receivers of the first have released it. Buffers are exchanged, never copied. Extra buffers
 * hold what a full pipe cannot take. Mirrors netmap lb's forward_packet; packets of several slots are kept whole.
 */
import { NS_MOREFRAG } from '../../api/index.ts';
import type { PktPort, PktRing } from '../pkt-gen/run.ts';
import { flowHash, seen } from './hash.ts';

/** Buffers that are taken from the longest queue when there are no free ones left (netmap: BUF_REVOKE). */
const REVOKE = 150;

/** A circular queue of slots. */
class SlotQueue {
  readonly size: number;
  n = 0;
  #head = 0;
  readonly #idx: Uint32Array;
  readonly #len: Uint16Array;
  readonly #more: Uint8Array;
  readonly #hash: Uint32Array;

  constructor(size: number) {
    this.size = size;
    this.#idx = new Uint32Array(size);
    this.#len = new Uint16Array(size);
    this.#more = new Uint8Array(size);
    this.#hash = new Uint32Array(size);
  }
  push(idx: number, len: number, more: number, hash: number): void {
    const at = (this.#head + this.n) % this.size;
    this.#idx[at] = idx;
    this.#len[at] = len;
    this.#more[at] = more;
    this.#hash[at] = hash;
    this.n++;
  }
  /** The first slot; `shift` takes it away. */
  idx(): number {
    return this.#idx[this.#head]!;
  }
  len(): number {
    return this.#len[this.#head]!;
  }
  more(): number {
    return this.#more[this.#head]!;
  }
  hash(): number {
    return this.#hash[this.#head]!;
  }
  shift(): void {
    this.#head = this.#head + 1 === this.size ? 0 : this.#head + 1;
    this.n--;
  }
  /** Slots of the first packet. */
  packet(): number {
    let slots = 1;
    for (let at = this.#head; this.#more[at] !== 0 && slots < this.n; at = (at + 1) % this.size) slots++;
    return slots;
  }
}

/** A pipe: the end that is written to. */
export class Output {
  readonly name: string;
  readonly ring: PktRing;
  readonly queue: SlotQueue;
  /** Hash of the packet that was put into each slot. */
  readonly hashes: Uint32Array;
  /** The first slot that has not come back. */
  lastTail: number;
  packets = 0;
  bytes = 0;
  dropped = 0;
  droppedBytes = 0;

  constructor(name: string, port: Pick<PktPort, 'txRings'>, queueSize: number) {
    this.name = name;
    const [ring, ...others] = port.txRings;
    this.ring = ring!;
    for (const other of others) other.cur = other.tail; // their room is not waited for
    this.queue = new SlotQueue(queueSize);
    this.hashes = new Uint32Array(this.ring.numSlots);
    this.lastTail = this.ring.next(this.ring.tail);
  }

  /** Slots that can be filled: not those of a packet that has come back in part, and is still to be passed on. */
  room(): number {
    const { ring, lastTail } = this;
    if (lastTail === ring.next(ring.tail)) return ring.space();
    // One stays empty: a ring that has come back as a whole would look like one that has not at all.
    return (lastTail - ring.head - 1 + ring.numSlots) % ring.numSlots;
  }
}

export class Balancer {
  readonly groups: readonly (readonly Output[])[];
  readonly #outputs: readonly Output[];
  /** Buffers that nobody needs now. */
  readonly #free: number[];
  received = 0;
  receivedBytes = 0;
  nonIp = 0;
  dropped = 0;

  /** @param extra indexes of extra buffers of the region that all rings lie in */
  constructor(groups: readonly (readonly Output[])[], extra: readonly number[]) {
    this.groups = groups;
    this.#outputs = groups.flat();
    this.#free = [...extra];
  }

  get freeBuffers(): number {
    return this.#free.length;
  }

  /**
   * What has come back from the pipes of a group goes to the next one, from the last group to the first, before the slots are
   * used again. Looks at the slot at tail too, which has come back although it is not yet ours to fill.
   */
  passOn(): void {
    for (let g = this.groups.length - 2; g >= 0; g--) {
      for (const out of this.groups[g]!) {
        const { ring } = out;
        const stop = ring.next(ring.tail);
        while (out.lastTail !== stop) {
          const slots = wholePacket(ring, out.lastTail, stop);
          if (slots === 0) break;
          this.#forward(this.groups[g + 1]!, ring, out.lastTail, slots, out.hashes[out.lastTail]!);
          out.lastTail = (out.lastTail + slots) % ring.numSlots;
        }
      }
    }
    for (const out of this.groups.at(-1)!) out.lastTail = out.ring.next(out.ring.tail);
  }

  /** Puts what waits in queues into pipes that have room. */
  drain(): void {
    for (const out of this.#outputs) {
      const { queue, ring } = out;
      while (queue.n > 0) {
        const slots = queue.packet();
        if (out.room() < slots) break;
        for (let i = 0; i < slots; i++) {
          this.#free.push(ring.bufIdx(ring.head));
          put(out, queue.idx(), queue.len(), queue.more(), queue.hash());
          queue.shift();
        }
        out.packets += 1;
      }
    }
  }

  /** The end: what still waits in queues is dropped. */
  end(): void {
    for (const out of this.#outputs) while (out.queue.n > 0) this.#dropFirst(out);
  }

  /**
   * Takes up to `batch` packets from an rx ring of a port to the first group. Slots longer than their buffers, which somebody
   * else in the region may have made, go on as they are: the pipe has them arrive empty (docs/pipes.md).
   */
  take({ m: { u8 }, bufSize }: Pick<PktPort, 'm' | 'bufSize'>, rx: PktRing, batch: number): void {
    let at = rx.head;
    for (let n = 0; n < batch && at !== rx.tail; n++) {
      const slots = wholePacket(rx, at, rx.tail) || 1;
      const hash = flowHash(u8, rx.bufOfs(at), Math.min(rx.len(at), bufSize));
      if (!seen.ip) this.nonIp += 1;
      this.received += 1;
      let after = at;
      for (let i = 0; i < slots; i++, after = rx.next(after)) this.receivedBytes += rx.len(after);
      this.#forward(this.groups[0]!, rx, at, slots, hash);
      at = after;
    }
    rx.head = at;
    rx.cur = at;
  }

  /** Forwards a packet in slots of a ring, which get other buffers; or drops it. */
  #forward(group: readonly Output[], src: PktRing, at: number, slots: number, hash: number): void {
    const out = group[hash % group.length]!;
    const direct = out.queue.n === 0 && out.room() >= slots;
    if (!direct) {
      // One with more slots than the pipe's ring would stay in the queue for ever.
      const fits = slots < out.ring.numSlots;
      if (fits && this.#free.length < slots) this.#revoke(slots);
      if (!fits || out.queue.size - out.queue.n < slots || this.#free.length < slots) {
        out.dropped += 1;
        this.dropped += 1;
        for (let i = 0, j = at; i < slots; i++, j = src.next(j)) out.droppedBytes += src.len(j);
        return;
      }
    }
    for (let i = 0, j = at; i < slots; i++, j = src.next(j)) {
      const idx = src.bufIdx(j);
      const len = src.len(j);
      const more = src.flags(j) & NS_MOREFRAG;
      if (direct) {
        src.setBufIdx(j, out.ring.bufIdx(out.ring.head));
        put(out, idx, len, more, hash);
      } else {
        out.queue.push(idx, len, more, hash);
        src.setBufIdx(j, this.#free.pop()!);
      }
    }
    if (direct) out.packets += 1;
  }

  /** Drops the oldest packets of the longest queue: newer ones are preferred, and a stalled pipe cannot keep all. */
  #revoke(wanted: number): void {
    let longest = this.#outputs[0]!;
    for (const out of this.#outputs) if (out.queue.n > longest.queue.n) longest = out;
    const { queue } = longest;
    for (let taken = 0; queue.n > 0 && (taken < REVOKE || this.#free.length < wanted); ) {
      taken += this.#dropFirst(longest);
    }
  }

  /** Drops the first packet of a pipe's queue. Returns its slots. */
  #dropFirst(out: Output): number {
    const { queue } = out;
    const slots = queue.packet();
    for (let i = 0; i < slots; i++) {
      this.#free.push(queue.idx());
      out.droppedBytes += queue.len();
      queue.shift();
    }
    out.dropped += 1;
    this.dropped += 1;
    return slots;
  }
}

/** Slots of the packet at `at`, if it ends before `stop`; else 0. */
function wholePacket(ring: PktRing, at: number, stop: number): number {
  let slots = 0;
  for (let i = at; i !== stop; i = ring.next(i)) {
    slots++;
    if ((ring.flags(i) & NS_MOREFRAG) === 0) return slots;
  }
  return 0;
}

/** Fills the slot at head of a pipe; a packet's last slot hands all of it over. */
function put(out: Output, idx: number, len: number, more: number, hash: number): void {
  const { ring } = out;
  const at = ring.head;
  ring.setFlags(at, more);
  ring.setBufIdx(at, idx);
  ring.setLen(at, len);
  out.hashes[at] = hash;
  out.bytes += len;
  ring.head = ring.next(at);
  ring.cur = ring.head;
}
