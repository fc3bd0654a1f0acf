/**
 * One ring between its application and the host: prologues (what the application wrote), publishing (what the host
 * answers), starting and stopping. Mirrors netmap's nm_txsync_prologue, nm_rxsync_prologue (netmap.c) and
 * netmap_kloop.c.
 *
 * Owner of the kring: the domain's datapath thread.
 */
import {
  domain_num_signals,
  domain_signals,
  KRING_RUNNING,
  kring_atok,
  kring_dir,
  kring_faulty,
  kring_armed,
  kring_hwcur,
  kring_hwtail,
  kring_ktoa,
  kring_mon,
  kring_mon_tail,
  kring_num_slots,
  kring_port,
  kring_pub_hwcur,
  kring_rcur,
  kring_repairs,
  kring_rhead,
  kring_rtail,
  kring_signalled,
  kring_signals,
  kring_state,
  kring_zmon,
  NR_DIR_TX,
  port_domain,
} from './layouts.generated';
import { monitorReleased } from './monitor';
import { loadApplNeedKick, loadCur, loadHead, loadKernNeedKick, storeAtok, storeKernNeedKick, storeKtoa } from './peer';
import { bump, push } from './private';

/** Whether lo <= head <= cur <= hi in ring order, all of them indexes of a ring of n slots. lo and hi are ours. */
export function cursorsValid(lo: u32, hi: u32, head: u32, cur: u32, n: u32): bool {
  if (head >= n || cur >= n) return false;
  const toHead = head >= lo ? head - lo : head + n - lo;
  const toCur = cur >= lo ? cur - lo : cur + n - lo;
  const toHi = hi >= lo ? hi - lo : hi + n - lo;
  return toHead <= toCur && toCur <= toHi;
}

/** Takes the application's head and cur if they are valid. Otherwise puts the ring right from private state (R7). */
function accept(kr: usize, head: u32, cur: u32): bool {
  const hwcur = load<u32>(kr, kring_hwcur);
  if (cursorsValid(hwcur, load<u32>(kr, kring_hwtail), head, cur, load<u32>(kr, kring_num_slots))) {
    store<u32>(kr, head, kring_rhead);
    store<u32>(kr, cur, kring_rcur);
    store<u32>(kr, 0, kring_faulty);
    return true;
  }
  store<u32>(kr, hwcur, kring_rhead);
  store<u32>(kr, hwcur, kring_rcur);
  if (load<u32>(kr, kring_faulty) == 0) {
    store<u32>(kr, 1, kring_faulty);
    bump(kr + kring_repairs, 1);
  }
  return false;
}

/**
 * Reads what the application of a running tx ring wrote. True if there are slots to send: hwcur .. rhead - 1.
 * The window for head and cur is hwcur .. hwtail: what the application may not take back any more (netmap's window
 * begins at rhead), it can only harm itself with.
 */
export function txsyncPrologue(kr: usize): bool {
  const atok: usize = load<u32>(kr, kring_atok);
  const head = loadHead(atok);
  if (head != load<u32>(kr, kring_rhead) || load<u32>(kr, kring_faulty) != 0) {
    if (!accept(kr, head, loadCur(atok))) return false;
  }
  return head != load<u32>(kr, kring_hwcur);
}

/** Whether `txsyncPrologue` would find something to do: slots to send, or a fault not yet counted. */
export function txReady(kr: usize): bool {
  const atok: usize = load<u32>(kr, kring_atok);
  const head = loadHead(atok);
  if (load<u32>(kr, kring_faulty) == 0) return head != load<u32>(kr, kring_hwcur);
  if (head == load<u32>(kr, kring_rhead)) return false;
  const hwtail = load<u32>(kr, kring_hwtail);
  return cursorsValid(load<u32>(kr, kring_hwcur), hwtail, head, loadCur(atok), load<u32>(kr, kring_num_slots));
}

/**
 * Takes back the slots which the application of a running rx ring released. After a fault: none (R7). Takes away the
 * kern_need_kick of CREATE: nobody here waits for room in an rx ring (R11).
 */
export function rxsync(kr: usize): void {
  setArmed(kr, 0);
  const atok: usize = load<u32>(kr, kring_atok);
  const head = loadHead(atok);
  if (!accept(kr, head, loadCur(atok))) return;
  const hwcur = load<u32>(kr, kring_hwcur);
  if (head != hwcur && load<u32>(kr, kring_zmon) != 0) monitorReleased(domainOf(kr), kr, hwcur, head);
  store<u32>(kr, head, kring_hwcur);
}

/** Whether `rxsync` would find released slots, unless the ring is faulty. */
export function rxReady(kr: usize): bool {
  return load<u32>(kr, kring_faulty) == 0 && loadHead(load<u32>(kr, kring_atok)) != load<u32>(kr, kring_rhead);
}

/**
 * Whether a ring has monitors, of either kind (both words at once). Whoever moves hwtail asks before `publish`, which calls
 * nothing: what it knows would have to be kept across a call, also where there is none (docs/monitors.md).
 */
export function isWatched(kr: usize): bool {
  return load<u64>(kr, kring_mon) != 0;
}

/**
 * Tells the application of a running ring where the ring stands, if that changed, and asks for an interrupt if hwtail
 * moved and the application wants one: hwcur, hwtail, barrier, appl_need_kick (R6, R13).
 */
export function publish(d: usize, kr: usize): void {
  const hwcur = load<u32>(kr, kring_hwcur);
  const hwtail = load<u32>(kr, kring_hwtail);
  const moved = hwtail != load<u32>(kr, kring_rtail);
  if (!moved && hwcur == load<u32>(kr, kring_pub_hwcur)) return;
  storeKtoa(load<u32>(kr, kring_ktoa), hwcur, hwtail);
  store<u32>(kr, hwcur, kring_pub_hwcur);
  store<u32>(kr, hwtail, kring_rtail);
  if (moved && loadApplNeedKick(load<u32>(kr, kring_atok)) != 0) signal(d, kr);
}

function signal(d: usize, kr: usize): void {
  if (load<u32>(kr, kring_signalled) != 0) return;
  store<u32>(kr, 1, kring_signalled);
  push(d + domain_num_signals, d + domain_signals, kr);
  bump(kr + kring_signals, 1);
}

/** Writes kern_need_kick if it has to change. */
export function setArmed(kr: usize, armed: u32): void {
  if (load<u32>(kr, kring_armed) == armed) return;
  store<u32>(kr, armed, kring_armed);
  storeKernNeedKick(load<u32>(kr, kring_ktoa), armed);
}

/** Whether the application set kern_need_kick, as it does before CREATE: if not, this is not its CSB. */
export function csbCheck(kr: usize): bool {
  return loadKernNeedKick(load<u32>(kr, kring_ktoa)) == 1;
}

/** Writes both halves of the ring's CSB as CREATE does, from the private positions, and takes it as running. */
export function csbStart(kr: usize): void {
  const hwcur = load<u32>(kr, kring_hwcur);
  const hwtail = load<u32>(kr, kring_hwtail);
  const ktoa: usize = load<u32>(kr, kring_ktoa);
  storeAtok(load<u32>(kr, kring_atok), load<u32>(kr, kring_rhead), load<u32>(kr, kring_rcur));
  storeKtoa(ktoa, hwcur, hwtail);
  storeKernNeedKick(ktoa, 1);
  store<u32>(kr, hwcur, kring_pub_hwcur);
  store<u32>(kr, hwtail, kring_rtail);
  store<u32>(kr, 1, kring_armed);
  store<u32>(kr, 0, kring_faulty);
  store<u32>(kr, KRING_RUNNING, kring_state);
}

/** Positions of a new ring (abi, section 2): tx: all slots the application's; rx: all the host's. */
export function resetPositions(kr: usize): void {
  const tx = load<u32>(kr, kring_dir) == NR_DIR_TX;
  store<u32>(kr, 0, kring_hwcur);
  store<u32>(kr, tx ? load<u32>(kr, kring_num_slots) - 1 : 0, kring_hwtail);
  store<u16>(kr, 0, kring_mon_tail);
  store<u32>(kr, 0, kring_rhead);
  store<u32>(kr, 0, kring_rcur);
  store<u32>(kr, 0, kring_faulty);
}

/** Domain of a ring; 0 if its port is not attached. */
export function domainOf(kr: usize): usize {
  return load<u32>(load<u32>(kr, kring_port), port_domain);
}
