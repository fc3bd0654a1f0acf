/** R19: rings after their client: what was permuted, thrown away or overwritten is put right from the private record. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { NETMAP_FIRST_BUF, netmap_if, netmap_ring } from '../../../src/abi/index.ts';
import { allRings, ledgerOf } from '../../../src/ports/index.ts';
import { type DeviceRig, RawGuest, type RigPort, SharedFile, SharedRing, withRig } from './rig.ts';

const rings = (port: RigPort): SharedRing[] =>
  allRings(port.registration).map((ring) => new SharedRing(port.region, port.registration, ring));
const buffersOf = (port: RigPort): number[] => rings(port).flatMap((ring) => ring.buffers());

const ledgers = (rig: DeviceRig, port: RigPort): number[] =>
  allRings(port.registration).flatMap((ring) => ledgerOf(rig.arena.m, ring));

function assertNoneShared(...ports: RigPort[]): void {
  const all = ports.flatMap(buffersOf);
  assert.equal(new Set(all).size, all.length, 'no buffer is in two slots');
  for (const idx of all) {
    assert.ok(idx >= NETMAP_FIRST_BUF && idx < ports[0]!.registration.numBufs, `buffer ${idx} exists`);
  }
}

async function pair(rig: DeviceRig): Promise<[RigPort, RigPort, RawGuest, RawGuest]> {
  const a = rig.addPort({ roomFor: 2, shape: { txSlots: 8, rxSlots: 8 } });
  const b = rig.addPort({ region: a.region, shape: { txSlots: 8, rxSlots: 8 } });
  return [a, b, new RawGuest(await rig.connect(a.device)), new RawGuest(await rig.connect(b.device))];
}

/** Swaps buffers between the two ports, as a middlebox that forwards without copying does. */
function permute(a: RigPort, b: RigPort, swaps: readonly (readonly [number, number])[]): void {
  const slots = (port: RigPort): { ring: SharedRing; i: number }[] =>
    rings(port).flatMap((ring) => Array.from({ length: 8 }, (_, i) => ({ ring, i })));
  const [x, y] = [slots(a), slots(b)];
  for (const [i, j] of swaps) {
    const [p, q] = [x[i % 16]!, y[j % 16]!];
    const idx = p.ring.bufIdx(p.i);
    p.ring.setBufIdx(p.i, q.ring.bufIdx(q.i));
    q.ring.setBufIdx(q.i, idx);
  }
}

test('R19: two ports of one region, buffers swapped between them: whoever leaves, in whatever order, no buffer is lost or doubled', () =>
  fc.assert(
    fc.asyncProperty(
      fc.array(fc.tuple(fc.nat(15), fc.nat(15)), { maxLength: 40 }),
      fc.array(fc.tuple(fc.constantFrom('a', 'b', 'swap'), fc.constantFrom('reset', 'leave')), { maxLength: 6 }),
      (swaps, steps) =>
        withRig(async (rig) => {
          const [a, b, guestA, guestB] = await pair(rig);
          const guests = { a: guestA, b: guestB };
          permute(a, b, swaps);
          for (const [who, how] of steps) {
            if (who === 'swap') {
              permute(a, b, swaps);
            } else if (how === 'reset') {
              await guests[who].client.reset();
            } else {
              guests[who].client.close();
              const port = who === 'a' ? a : b;
              await rig.left(port.device);
              guests[who] = new RawGuest(await rig.connect(port.device));
            }
            assertNoneShared(a, b);
          }
          await guests.a.client.reset();
          await guests.b.client.reset();
          assertNoneShared(a, b);
        }),
    ),
    { numRuns: 25 },
  ));

test('R19: garbage in every slot, and in the rings and the netmap_if: RESET writes them afresh', () =>
  withRig(async (rig) => {
    const [a, b, guestA] = await pair(rig);
    const fresh = buffersOf(a);
    const file = new SharedFile(a.region.fd, a.region.layout.size);
    const nifp = file.read(a.registration.nifpOfs, netmap_if.size + 64);
    for (const ring of rings(a)) {
      file.write(ring.ring.ringOfs, new Uint8Array(netmap_ring.size).fill(0xff));
      for (let i = 0; i < 8; i++) ring.setBufIdx(i, 0xffffffff - i);
    }
    file.write(a.registration.nifpOfs, new Uint8Array(256).fill(0xaa));
    await guestA.client.reset();
    assert.deepEqual(buffersOf(a), fresh);
    assert.deepEqual(file.read(a.registration.nifpOfs, nifp.length), nifp);
    const ring = rings(a)[0]!;
    const word = (at: number): number => file.u32(ring.ring.ringOfs + at);
    assert.deepEqual(
      [word(netmap_ring.ofs.num_slots), word(netmap_ring.ofs.nr_buf_size), word(netmap_ring.ofs.tail)],
      [8, 2048, 7],
    );
    assertNoneShared(a, b);
  }));

test('R19: a live neighbour that claims every buffer of the region takes nobody’s: there are always enough', () =>
  withRig(async (rig) => {
    const [a, b, guestA] = await pair(rig);
    // b's 16 slots name a's buffers, all of them; its own are in no slot.
    const stolen = buffersOf(a);
    rings(b).forEach((ring, r) => {
      for (let i = 0; i < 8; i++) ring.setBufIdx(i, stolen[r * 8 + i]!);
    });
    await guestA.client.reset();
    assertNoneShared(a, b);
    // And all slots one and the same, and out of range.
    for (const ring of rings(b)) for (let i = 0; i < 8; i++) ring.setBufIdx(i, i % 2 === 0 ? stolen[0]! : 0xdead_beef);
    await guestA.client.reset();
    const mine = buffersOf(a);
    assert.equal(new Set(mine).size, mine.length);
    assert.ok(!mine.includes(stolen[0]!));
  }));

test('R19: the record of a neighbour that is gone counts, not what it left in its slots', () =>
  withRig(async (rig) => {
    const [a, b, guestA, guestB] = await pair(rig);
    permute(a, b, [
      [0, 0],
      [1, 9],
      [15, 3],
    ]);
    guestB.client.close();
    await rig.left(b.device);
    const record = ledgers(rig, b);
    assertNoneShared(a, b);
    for (const ring of rings(b)) for (let i = 0; i < 8; i++) ring.setBufIdx(i, 5);
    assert.deepEqual(ledgers(rig, b), record);
    await guestA.client.reset();
    const mine = buffersOf(a);
    assert.deepEqual(
      mine.filter((idx) => record.includes(idx)),
      [],
    );
  }));

test('R19: while a ring is stopped, frames for it are dropped and counted', () =>
  withRig(async (rig) => {
    const a = rig.addPort();
    const b = rig.addPort();
    const guest = new RawGuest(await rig.connect(a.device));
    await guest.start();
    const tx = new SharedRing(a.region, a.registration, a.registration.txRings[0]!);
    for (let i = 0; i < 5; i++) tx.put(i, new Uint8Array(60).fill(255));
    guest.setHead(0, 5);
    rig.kloop.turn();
    const { kring } = await import('../../../src/abi/index.ts');
    assert.equal(kring.get.drop_stopped(rig.arena.m, b.registration.rxRings[0]!.kring), 5n);
    assert.equal(guest.hwcur(0), 5, 'the sender goes on');
  }));

test('R19: a ring keeps its own ledger’s buffers where nobody else holds them', () =>
  withRig(async (rig) => {
    const a = rig.addPort({ shape: { txSlots: 4, rxSlots: 4 } });
    const guest = new RawGuest(await rig.connect(a.device));
    await guest.client.reset();
    assert.deepEqual(buffersOf(a), ledgers(rig, a));
  }));

test('R19: the ledgers of a region stay disjoint, and after everyone has left they say what the slots hold', () =>
  fc.assert(
    fc.asyncProperty(fc.array(fc.tuple(fc.nat(15), fc.nat(15)), { maxLength: 40 }), (swaps) =>
      withRig(async (rig) => {
        const [a, b, guestA, guestB] = await pair(rig);
        const all = [...ledgers(rig, a), ...ledgers(rig, b)].toSorted((x, y) => x - y);
        permute(a, b, swaps);
        for (const [port, guest] of [
          [a, guestA],
          [b, guestB],
        ] as const) {
          guest.client.close();
          await rig.left(port.device);
          assert.deepEqual(
            [...ledgers(rig, a), ...ledgers(rig, b)].toSorted((x, y) => x - y),
            all,
          );
          assert.deepEqual(new Set(ledgers(rig, port)), new Set(buffersOf(port)), 'what is given back is what it has');
        }
      }),
    ),
    { numRuns: 25 },
  ));
