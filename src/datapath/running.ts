/**
 * A domain's running rings. The list of tx rings has two parts: those that every turn serves, and behind them, in a
 * switch, the parked ones, which moved nothing for PARK_TURNS turns: a turn looks at a few of them, so that a packet costs
 * the same however many idle ports there are. Arming, and looking before a sleep, are for all of them (R12).
 *
 * Owner of the lists: the domain's datapath thread.
 */
import { txReady } from './kring';
import {
  DOMAIN_VALE,
  domain_kind,
  domain_num_rx_running,
  domain_num_tx_polled,
  domain_num_tx_running,
  domain_rx_running,
  domain_sweep,
  domain_tx_running,
  kring_dir,
  kring_idle,
  kring_run_idx,
  NR_DIR_TX,
} from './layouts.generated';
import { at, push, put, removeAt } from './private';

/** Turns without a slot after which a ring is parked. */
const PARK_TURNS: u64 = 256;
/** A turn looks at so many parked rings, and one more for each that it serves: some hundred turns find any of them. */
const PARKED_LOOKS: u32 = 4;

/** Puts a ring on its domain's list of running ones. A tx ring begins unparked. */
export function enlist(d: usize, kr: usize): void {
  if (load<u32>(kr, kring_dir) != NR_DIR_TX) {
    store<u32>(kr, push(d + domain_num_rx_running, d + domain_rx_running, kr), kring_run_idx);
    return;
  }
  store<u64>(kr, 0, kring_idle);
  store<u32>(kr, push(d + domain_num_tx_running, d + domain_tx_running, kr), kring_run_idx);
  unpark(d, kr);
}

export function delist(d: usize, kr: usize): void {
  if (load<u32>(kr, kring_dir) != NR_DIR_TX) {
    const idx = load<u32>(kr, kring_run_idx);
    const moved = removeAt(d + domain_num_rx_running, d + domain_rx_running, idx);
    if (moved != 0) store<u32>(moved, idx, kring_run_idx);
    return;
  }
  if (load<u32>(kr, kring_run_idx) < load<u32>(d, domain_num_tx_polled)) park(d, kr);
  const idx = load<u32>(kr, kring_run_idx);
  const moved = removeAt(d + domain_num_tx_running, d + domain_tx_running, idx);
  if (moved != 0) store<u32>(moved, idx, kring_run_idx);
}

/** Notes whether a turn moved slots of a tx ring. Whether it is to be parked. */
export function isIdle(d: usize, kr: usize, moved: u32): bool {
  const idle = load<u64>(kr, kring_idle);
  if (moved != 0) {
    if (idle != 0) store<u64>(kr, 0, kring_idle);
    return false;
  }
  store<u64>(kr, idle + 1, kring_idle);
  return idle >= PARK_TURNS && load<u32>(d, domain_kind) == DOMAIN_VALE;
}

/** The last one that is served and a ring that is served change places, and the boundary goes between them. */
export function park(d: usize, kr: usize): void {
  const last = load<u32>(d, domain_num_tx_polled) - 1;
  exchange(d, load<u32>(kr, kring_run_idx), last);
  store<u32>(d, last, domain_num_tx_polled);
}

/** The other way round. */
export function unpark(d: usize, kr: usize): void {
  const first = load<u32>(d, domain_num_tx_polled);
  exchange(d, load<u32>(kr, kring_run_idx), first);
  store<u32>(d, first + 1, domain_num_tx_polled);
  store<u64>(kr, 0, kring_idle);
}

function exchange(d: usize, i: u32, j: u32): void {
  const list = d + domain_tx_running;
  const a = at(list, i);
  const b = at(list, j);
  put(list, i, b);
  put(list, j, a);
  store<u32>(a, j, kring_run_idx);
  store<u32>(b, i, kring_run_idx);
}

/** Looks at the next few parked rings; those that have something to send are served from now on. */
export function lookAtParked(d: usize): void {
  const n = load<u32>(d, domain_num_tx_running);
  const polled = load<u32>(d, domain_num_tx_polled);
  if (n == polled) return;
  let looks = PARKED_LOOKS + polled;
  if (looks > n - polled) looks = n - polled;
  let i = load<u32>(d, domain_sweep);
  for (; looks != 0; looks--) {
    if (i >= n || i < load<u32>(d, domain_num_tx_polled)) i = load<u32>(d, domain_num_tx_polled);
    const kr = at(d + domain_tx_running, i);
    if (txReady(kr)) unpark(d, kr);
    i++;
    if (load<u32>(d, domain_num_tx_polled) == n) break;
  }
  store<u32>(d, i, domain_sweep);
}
