/**
 * The port of an interface and a chain of zero-copy monitors in one region, with a kernel that the test plays: it has the
 * buffers of the fill ring, gives frames in any order of buffers, completes what was sent. The port is its user's own, or one
 * of a switch, where another port exchanges frames with it. Every buffer has one owner.
 */
import assert from 'node:assert/strict';
import {
  domain as domainStruct,
  kring,
  MONITOR_ZCOPY,
  NETMAP_FIRST_BUF,
  NS_MOREFRAG,
  netmap_slot,
  nic_queue,
  nm_csb_atok,
  nm_csb_ktoa,
} from '../../src/abi/index.ts';
import { rebuildRings } from '../../src/device/index.ts';
import { loadDatapath } from '../../src/kloop/datapath.ts';
import { Arena, ArenaSpace, heldBuffers, Region } from '../../src/memory/index.ts';
import { XDP_PACKET_HEADROOM } from '../../src/os/index.ts';
import type { PortMemory, Registration } from '../../src/ports/index.ts';
import { allRings, createPort, createRegistration, ledgerOf, releasePorts } from '../../src/ports/index.ts';
import { BROADCAST, frame as frameTo, mac, RigRing } from '../unit/datapath/rig.ts';

export const N = 8;
const BUF_SIZE = 256;
export const MONITORS = 2;
const BUFFERS = (2 + 2 * MONITORS) * N;
const EXISTING = NETMAP_FIRST_BUF + BUFFERS;
const RING_BYTES = 4096;
const FRAME_BYTES = 60;
/** Where a frame has its number, behind the addresses. */
const NUMBER_AT = 16;
const [PRODUCER, CONSUMER, DESC] = [0, 64, 192];
/** linux/if_xdp.h: the frame goes on in the next entry. */
const XDP_PKT_CONTD = 1;

type Ring = 'rx' | 'tx' | 'fill' | 'completion';

/** Somebody's port: its device's registration, its rings as its user sees them. */
interface User {
  readonly registration: Registration;
  readonly tx: RigRing;
  readonly rx: RigRing;
  live: boolean;
}

/** A frame to everybody, with a number. */
function frameBytes(n: number): Uint8Array {
  const bytes = frameTo(BROADCAST, mac(1), FRAME_BYTES);
  new DataView(bytes.buffer).setUint32(NUMBER_AT, n, true);
  return bytes;
}

export class NicRig {
  readonly arena = Arena.create();
  readonly space: ArenaSpace;
  readonly m;
  readonly dp;
  readonly region: Region;
  readonly domain: number;
  readonly queue: number;
  readonly memory: PortMemory[] = [];
  readonly card: User;
  readonly monitors: User[];
  /** In a switch: the region and the port at the other end. */
  readonly #far: { readonly region: Region; readonly memory: PortMemory; readonly user: User } | undefined;
  readonly #at: Readonly<Record<Ring, number>>;
  /** Addresses of buffers in the kernel's hands, what it has been given, and what it was told. */
  #kernel = { owned: [] as number[], fill: 0, rx: 0, tx: 0, completion: 0 };
  #frames = 0;
  /** Frames on their way: those that arrived and were not read, and those that were sent and not completed. */
  #toRead: number[] = [];
  #toSend: number[] = [];
  /** Frames that were read or sent, each of which the first monitor shows, or counts as lost. */
  #released = 0;
  /** Frames that a switch had no room for in the card's ring. */
  #dropped = 0;
  /** Whether somebody wrote into others' slots: what is where, and what frames say, is anything then. */
  #spoiled = false;

  /** @param hosted whether the interface's port is one of a switch */
  constructor(start: number, hosted = false) {
    this.space = new ArenaSpace(this.arena, start);
    this.m = this.arena.m;
    this.dp = loadDatapath(this.arena.memory);
    this.domain = this.#pages(domainStruct.size);
    if (hosted) this.dp.valeInit(this.domain);
    else this.dp.nicInit(this.domain);
    const ports = 1 + MONITORS;
    const sizes = { interfaces: ports, rings: 2 * ports, slots: N, buffers: BUFFERS, bufSize: BUF_SIZE };
    this.region = new Region({ name: 'nic', ...sizes }, 1);
    const attach = (port: number): void => assert.ok(this.dp.valeAttach(this.domain, port) >= 0);
    this.card = this.#user('x', attach);
    this.monitors = Array.from({ length: MONITORS }, (_, i) =>
      this.#user(`x/z#${i}`, (port) => assert.equal(this.dp.monAttach(this.domain, port, MONITOR_ZCOPY), 0)),
    );
    if (hosted) {
      const region = new Region(
        { name: 'far', interfaces: 1, rings: 2, slots: 4 * N, buffers: 8 * N, bufSize: BUF_SIZE },
        2,
      );
      const user = this.#user('far', attach, region, 4 * N);
      this.#far = { region, memory: this.memory.pop()!, user };
      this.start(user);
    }
    const rings = ['rx', 'tx', 'fill', 'completion'].map((ring) => [ring, this.#pages(RING_BYTES)]);
    this.#at = Object.fromEntries(rings) as Record<Ring, number>;
    this.queue = this.#pages(nic_queue.size);
    for (const { rx } of this.monitors)
      for (const ring of [this.card.tx, this.card.rx]) this.dp.monLink(rx.kr, ring.kr);
    this.up();
    for (const user of this.users) this.start(user);
  }

  get users(): User[] {
    return [this.card, ...this.monitors];
  }

  #pages(bytes: number): number {
    const ofs = this.space.alloc(bytes);
    this.arena.mapAnonymous(ofs, Math.ceil(bytes / 4096) * 4096);
    return ofs;
  }

  /** The card's rings that receive frames and send them. */
  get #ways(): { readonly receives: RigRing; readonly sends: RigRing } {
    const { tx, rx } = this.card;
    return this.#far === undefined ? { receives: rx, sends: tx } : { receives: tx, sends: rx };
  }

  #user(name: string, attach: (port: number) => void, region = this.region, slots = N): User {
    const shape = { txRings: 1, rxRings: 1, txSlots: slots, rxSlots: slots };
    const memory = createPort(this.space, region, name, shape);
    this.memory.push(memory);
    const record = memory.ports[0]!;
    attach(record.port);
    const identity = { mac: [2, 0, 0, 0, 0, 1], vnetHdr: false };
    const registration = createRegistration(this.space, region, record, record, identity, 4096);
    for (const window of registration.csbAddr) this.arena.mapAnonymous(window, 4096);
    for (const [i, ring] of allRings(registration).entries()) {
      kring.set.atok(this.m, ring.kring, registration.csbAddr[0] + i * nm_csb_atok.size);
      kring.set.ktoa(this.m, ring.kring, registration.csbAddr[1] + i * nm_csb_ktoa.size);
    }
    const [tx, rx] = [record.txRings[0]!, record.rxRings[0]!].map((ring) => new RigRing(this.m, ring.kring));
    return { registration, tx: tx!, rx: rx!, live: false };
  }

  /** The interface's socket is opened: the kernel gets the buffers of the ring that receives. */
  up(): void {
    for (const at of Object.values(this.#at)) this.m.u8.fill(0, at, at + RING_BYTES);
    this.#kernel = { owned: [], fill: 0, rx: 0, tx: 0, completion: 0 };
    const { set } = nic_queue;
    const { m, queue, card } = this;
    set.tx_kring(m, queue, card.tx.kr);
    set.rx_kring(m, queue, card.rx.kr);
    set.umem(m, queue, card.registration.regionAddr);
    set.headroom(m, queue, XDP_PACKET_HEADROOM);
    set.mask(m, queue, N - 1);
    set.max_pieces(m, queue, 1);
    for (const [ring, at] of Object.entries(this.#at) as [Ring, number][]) {
      set[`${ring}_producer`](m, queue, at + PRODUCER);
      if (ring === 'rx' || ring === 'completion') set[`${ring}_consumer`](m, queue, at + CONSUMER);
      if (ring !== 'completion') set[`${ring}_desc`](m, queue, at + DESC);
    }
    set.hosted(m, queue, this.#far === undefined ? 0 : 1);
    const { txRings, rxRings } = card.registration;
    set.ledger(m, queue, (this.#far === undefined ? rxRings : txRings)[0]!.ledger);
    this.dp.nicUp(this.domain, queue);
  }

  start(user: User): void {
    for (const ring of [user.tx, user.rx]) {
      assert.equal(this.dp.krStart(ring.kr), 0);
      ring.head = ring.hwcur;
    }
    user.live = true;
  }

  /** A user is gone, and has left anything in its slots; another one comes. */
  die(user: User, garbage: readonly number[]): void {
    const rings = [user.tx, user.rx];
    // What the kernel has sent is taken back; of its own port, the last sync of the rings does that.
    if (user === this.card && this.#far !== undefined) this.serve();
    for (const ring of rings) this.dp.krStop(ring.kr);
    if (user === this.card) {
      this.dp.nicDown(this.queue);
      this.#toRead = [];
      this.#toSend = [];
    }
    for (const [i, idx] of garbage.entries()) {
      netmap_slot.set.buf_idx(this.m, rings[i % 2]!.slot((i >> 1) % N), idx);
    }
    user.live = false;
    for (const ring of rings) assert.equal(this.dp.krFreeze(ring.kr), 0);
    rebuildRings(
      this.m,
      user.registration,
      this.users
        .filter((other) => other !== user)
        .map(({ registration, live }) => ({ m: this.m, holdings: registration, live })),
    );
    for (const ring of rings) assert.equal(this.dp.krReset(ring.kr), 0);
    if (user === this.card) this.up();
    this.start(user);
  }

  #word(ring: Ring, word: number): number {
    return this.m.u32[(this.#at[ring] + word) >>> 2]!;
  }

  #store(ring: Ring, word: number, value: number): void {
    this.m.u32[(this.#at[ring] + word) >>> 2] = value;
  }

  #takeFill(): void {
    const kernel = this.#kernel;
    for (; kernel.fill !== this.#word('fill', PRODUCER); kernel.fill++) {
      kernel.owned.push(this.#word('fill', DESC + 8 * (kernel.fill % N)) + XDP_PACKET_HEADROOM);
    }
    this.#store('fill', CONSUMER, kernel.fill);
  }

  /** A frame comes. @param which of the kernel's buffers it is put into, and as many more as it has pieces */
  arrive(which: number, pieces = 1): void {
    this.#takeFill();
    const kernel = this.#kernel;
    if (kernel.owned.length < pieces) return;
    const frame = ++this.#frames;
    for (let left = pieces; left > 0; left--) {
      const [address] = kernel.owned.splice(which % kernel.owned.length, 1);
      this.m.u8.set(frameBytes(frame), this.card.registration.regionAddr + address!);
      const desc = DESC + 16 * (kernel.rx++ % N);
      this.#store('rx', desc, address!);
      this.#store('rx', desc + 4, 0);
      this.#store('rx', desc + 8, FRAME_BYTES);
      this.#store('rx', desc + 12, left > 1 ? XDP_PKT_CONTD : 0);
      if (pieces < N) this.#toRead.push(frame); // else no ring shows it
    }
    this.#store('rx', PRODUCER, kernel.rx);
  }

  /** The kernel has sent frames: they are as they were handed over. */
  complete(count: number): void {
    const kernel = this.#kernel;
    for (let i = 0; i < count && kernel.completion !== this.#word('tx', PRODUCER); i++) {
      const address = this.#word('tx', DESC + 16 * (kernel.completion++ % N));
      const frame = this.#number(this.card.registration.regionAddr + address);
      if (this.#spoiled) continue;
      // A switch drops what its receiver has no room for.
      if (this.#far !== undefined) while (this.#toSend.length > 0 && this.#toSend[0] !== frame) this.#drop();
      assert.equal(frame, this.#toSend.shift(), 'what is sent is what was to be sent');
      this.#released++;
    }
    this.#store('completion', PRODUCER, kernel.completion);
  }

  #drop(): void {
    this.#toSend.shift();
    this.#dropped++;
  }

  #number(address: number): number {
    return this.m.u32[(address + NUMBER_AT) >>> 2]!;
  }

  /** The card's user sends, or whoever is at the switch. */
  send(count: number): void {
    const { tx } = this.#far?.user ?? this.card;
    for (let i = 0; i < count && tx.avail > 0; i++) {
      // What others wrote there is no buffer.
      if (tx.bufIdx(tx.head) >= tx.count('num_bufs')) break;
      const frame = ++this.#frames;
      tx.put(frameBytes(frame));
      this.#toSend.push(frame);
    }
    tx.publish();
  }

  /** … reads and releases. */
  read(count: number): void {
    const { rx } = this.#far?.user ?? this.card;
    for (let i = 0; i < count && rx.avail > 0; i++) {
      const arrived = this.#toRead.shift();
      if (!this.#spoiled) assert.equal(this.#number(rx.buf(rx.head)), arrived, 'what is read is what arrived');
      if ((netmap_slot.get.flags(this.m, rx.slot(rx.head)) & NS_MOREFRAG) === 0) this.#released++;
      rx.head = rx.next(rx.head);
    }
    rx.publish();
  }

  /** A monitor's user reads and releases: frames with a number, each once. */
  watch({ rx }: User, count: number): void {
    for (let i = 0; i < count && rx.avail > 0; i++) {
      const frame = this.#spoiled ? 1 : this.#number(rx.buf(rx.head));
      assert.ok(frame > 0 && frame <= this.#frames);
      rx.head = rx.next(rx.head);
    }
    rx.publish();
  }

  /** Somebody who has the region writes into a slot of the card. */
  scribble(tx: boolean, slot: number, word: bigint): void {
    this.#spoiled = true;
    this.m.u64[(tx ? this.card.tx : this.card.rx).slot(slot) / 8] = word;
  }

  serve(): void {
    // In a switch, who receives keeps up.
    while (this.dp.serve(this.domain) > 0) if (this.#far !== undefined) this.read(4 * N);
    assert.equal(this.dp.look(this.domain), 0, 'a thread that finds nothing to do sleeps');
    this.check();
  }

  check(): void {
    const given = this.#given();
    for (let i = this.#kernel.completion; i !== this.#word('tx', PRODUCER); i++) {
      given.push(this.#idx(this.#word('tx', DESC + 16 * (i % N))));
    }
    const ours = given.every((idx) => Number.isInteger(idx) && idx >= NETMAP_FIRST_BUF && idx < EXISTING);
    assert.ok(ours, 'the kernel has buffers of the region');
    if (this.#spoiled) return;
    this.#checkOwners();
    const dropped = this.#dropped <= (this.#far === undefined ? 0 : this.card.rx.count('drop_full'));
    assert.ok(dropped, 'what is not sent was counted');
    const first = this.monitors[0]!.rx;
    assert.equal(first.count('packets') + first.count('drop_full'), this.#released, 'every frame is shown, or counted');
  }

  #idx(address: number): number {
    const { registration, rx } = this.card;
    return (address + registration.regionAddr - rx.bufBase) / rx.bufSize;
  }

  /** Buffers that the kernel has to receive into, or has received into. */
  #given(): number[] {
    this.#takeFill();
    const kernel = [...this.#kernel.owned];
    for (let i = nic_queue.get.rx_cons(this.m, this.queue); i !== this.#kernel.rx; i++) {
      kernel.push(this.#word('rx', DESC + 16 * (i % N)));
    }
    return kernel.map((address) => this.#idx(address));
  }

  /** Every buffer is in one place, and the host knows which. */
  #checkOwners(): void {
    const { m } = this;
    const all = (ring: RigRing): number[] => Array.from({ length: N }, (_, i) => ring.bufIdx(i));
    const { receives, sends } = this.#ways;
    const [from, to] =
      this.#far === undefined
        ? [kring.get.hwcur(m, receives.kr), kring.get.hwtail(m, receives.kr)]
        : [nic_queue.get.refilled(m, this.queue), nic_queue.get.tx_head(m, this.queue)];
    const unread: number[] = [];
    for (let i = from; i !== to; i = receives.next(i)) unread.push(receives.bufIdx(i));
    const received = [...unread, ...this.#given()];
    const sorted = (list: readonly number[]): number[] => list.toSorted((a, b) => a - b);
    assert.deepEqual(sorted(heldBuffers(m, receives.kr)), sorted(received), 'what the kernel has is known');
    const everywhere = [
      ...received,
      ...all(sends),
      ...this.monitors.flatMap((user) => [...all(user.tx), ...all(user.rx)]),
    ];
    const existing = Array.from({ length: BUFFERS }, (_, i) => NETMAP_FIRST_BUF + i);
    assert.deepEqual(sorted(everywhere), existing, 'every buffer has one owner');
  }

  /** Everyone leaves: all buffers are given back, each once. */
  close(): void {
    for (const user of this.users) this.die(user, []);
    this.#checkOwners();
    this.dp.nicDown(this.queue);
    const ledgers = this.users.flatMap((user) => allRings(user.registration).flatMap((ring) => ledgerOf(this.m, ring)));
    assert.equal(new Set(ledgers).size, BUFFERS);
    for (const memory of this.memory) releasePorts(this.space, this.region, memory);
    if (this.#far !== undefined) releasePorts(this.space, this.#far.region, this.#far.memory);
    assert.equal(this.region.free.buffers, BUFFERS);
    this.abandon();
  }

  abandon(): void {
    this.region.close();
    this.#far?.region.close();
    this.arena.unmap(0, this.arena.bytes);
  }
}
