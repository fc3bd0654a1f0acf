/**
 * The datapath's exports, called by src/kloop/datapath.ts, which documents them. All of them run on the domain's own
 * datapath thread. d, port, kr: arena addresses of a domain, port, kring (src/abi/host.ts).
 */
import {
  DOMAIN_NIC,
  DOMAIN_NULL,
  DOMAIN_PIPE,
  DOMAIN_VALE,
  domain_active,
  domain_kind,
  domain_num_active,
  domain_num_monitor_rings,
  domain_num_nics,
  domain_num_rx_running,
  domain_num_signals,
  domain_num_tx_polled,
  domain_num_tx_running,
  domain_ports,
  domain_rx_running,
  domain_signals,
  domain_turn,
  domain_tx_running,
  KRING_FROZEN,
  KRING_RUNNING,
  KRING_STOPPED,
  kring_armed,
  kring_dir,
  kring_drop_nodst,
  kring_hwcur,
  kring_kind,
  kring_mon,
  kring_port,
  kring_num_slots,
  kring_signalled,
  kring_state,
  kring_zmon,
  MAX_MONITOR_RINGS,
  NM_BDG_MAXPORTS,
  NR_DIR_TX,
  port_active_idx,
  port_domain,
  port_num_rx_rings,
  port_num_tx_rings,
  port_port_id,
  port_rx_rings,
  port_tx_rings,
} from './layouts.generated';
import {
  csbCheck,
  csbStart,
  domainOf,
  publish,
  resetPositions,
  rxReady,
  rxsync,
  setArmed,
  txReady,
  txsyncPrologue,
} from './kring';
import { monitorForget, monitorLink, monitorUnlink, nextMonitor } from './monitor';
import { nullRxsync, nullTxsync, sinkTxsync } from './null';
import { nicArmReceiver, nicRxReady, nicRxsync, nicsAfter, nicsBefore, nicsReady, nicTxReady, nicTxsync } from './nic';
import { pipeArmReceiver, pipeFreeze, pipeRxReady, pipeRxsync, pipeThaw, pipeTxOpen, pipeTxsync } from './pipe';
import { at, push, removeAt } from './private';
import { delist, enlist, isIdle, lookAtParked, park, unpark } from './running';
import { forgetPort } from './table';
import { valeTxsync } from './vale';

const EINVAL: i32 = 22;
const ENOSPC: i32 = 28;
const EBUSY: i32 = 16;

export function valeInit(d: usize): void {
  store<u32>(d, DOMAIN_VALE, domain_kind);
}

export function pipeInit(d: usize): void {
  store<u32>(d, DOMAIN_PIPE, domain_kind);
}

export function nullInit(d: usize): void {
  store<u32>(d, DOMAIN_NULL, domain_kind);
}

export function nicInit(d: usize): void {
  store<u32>(d, DOMAIN_NIC, domain_kind);
}

export { nicDown, nicUp } from './nic';

export function valeAttach(d: usize, port: usize): i32 {
  if (load<u32>(port, port_domain) != 0) return -EBUSY;
  const id = freeId(d);
  if (id == NM_BDG_MAXPORTS) return -ENOSPC;
  store<u32>(d + (id << 2), <u32>port, domain_ports);
  store<u32>(port, <u32>d, port_domain);
  setKind(port, load<u32>(d, domain_kind));
  store<u32>(port, id, port_port_id);
  store<u32>(port, push(d + domain_num_active, d + domain_active, port), port_active_idx);
  return id;
}

function setKind(port: usize, kind: u32): void {
  for (let i: u32 = 0; i < load<u32>(port, port_num_tx_rings); i++)
    store<u16>(at(port + port_tx_rings, i), kind, kring_kind);
  for (let i: u32 = 0; i < load<u32>(port, port_num_rx_rings); i++)
    store<u16>(at(port + port_rx_rings, i), kind, kring_kind);
}

/** The lowest port_id that is free, or NM_BDG_MAXPORTS. */
function freeId(d: usize): u32 {
  let id: u32 = 0;
  while (id < NM_BDG_MAXPORTS && at(d + domain_ports, id) != 0) id++;
  return id;
}

export function valeDetach(d: usize, port: usize): i32 {
  if (load<u32>(port, port_domain) != <u32>d) return -EINVAL;
  stopRings(port);
  monForget(port);
  removePort(d, port);
  return 0;
}

export function monForget(port: usize): void {
  for (let i: u32 = 0; i < load<u32>(port, port_num_tx_rings); i++) monitorForget(at(port + port_tx_rings, i));
  for (let i: u32 = 0; i < load<u32>(port, port_num_rx_rings); i++) monitorForget(at(port + port_rx_rings, i));
}

function stopRings(port: usize): void {
  for (let i: u32 = 0; i < load<u32>(port, port_num_tx_rings); i++) krStop(at(port + port_tx_rings, i));
  for (let i: u32 = 0; i < load<u32>(port, port_num_rx_rings); i++) krStop(at(port + port_rx_rings, i));
}

/** Takes a port off its domain. */
function removePort(d: usize, port: usize): void {
  const id = load<u32>(port, port_port_id);
  forgetPort(d, id);
  store<u32>(d + (id << 2), 0, domain_ports);
  const idx = load<u32>(port, port_active_idx);
  const moved = removeAt(d + domain_num_active, d + domain_active, idx);
  if (moved != 0) store<u32>(moved, idx, port_active_idx);
  store<u32>(port, 0, port_domain);
  setKind(port, 0);
}

export function monAttach(d: usize, port: usize, kind: u32): i32 {
  if (load<u32>(port, port_domain) != 0) return -EBUSY;
  const rings = load<u32>(d, domain_num_monitor_rings) + load<u32>(port, port_num_rx_rings);
  if (rings > MAX_MONITOR_RINGS) return -ENOSPC;
  store<u32>(d, rings, domain_num_monitor_rings);
  store<u32>(port, <u32>d, port_domain);
  setKind(port, kind);
  return 0;
}

export function monLink(monitor: usize, kr: usize): void {
  monitorLink(monitor, kr);
}

export function monDetach(d: usize, port: usize): i32 {
  if (load<u32>(port, port_domain) != <u32>d) return -EINVAL;
  stopRings(port);
  for (let i: u32 = 0; i < load<u32>(port, port_num_rx_rings); i++) monitorUnlink(at(port + port_rx_rings, i));
  store<u32>(d, load<u32>(d, domain_num_monitor_rings) - load<u32>(port, port_num_rx_rings), domain_num_monitor_rings);
  store<u32>(port, 0, port_domain);
  setKind(port, 0);
  return 0;
}

/** The monitors of a ring go with its port to another domain; those that have a domain in common are moved once. */
function moveMonitors(from: usize, to: usize, kr: usize): void {
  const dir = load<u32>(kr, kring_dir);
  for (let m: usize = load<u32>(kr, kring_mon); m != 0; m = nextMonitor(m, dir))
    moveMonitor(from, to, load<u32>(m, kring_port));
  for (let m: usize = load<u32>(kr, kring_zmon); m != 0; m = load<u32>(m, kring_zmon))
    moveMonitor(from, to, load<u32>(m, kring_port));
}

function moveMonitor(from: usize, to: usize, port: usize): void {
  if (load<u32>(port, port_domain) != <u32>from) return;
  const tx = load<u32>(port, port_num_tx_rings);
  const rx = load<u32>(port, port_num_rx_rings);
  for (let i: u32 = 0; i < tx; i++) suspend(from, at(port + port_tx_rings, i));
  for (let i: u32 = 0; i < rx; i++) suspend(from, at(port + port_rx_rings, i));
  store<u32>(from, load<u32>(from, domain_num_monitor_rings) - rx, domain_num_monitor_rings);
  store<u32>(to, load<u32>(to, domain_num_monitor_rings) + rx, domain_num_monitor_rings);
  store<u32>(port, <u32>to, port_domain);
  for (let i: u32 = 0; i < tx; i++) resume(to, at(port + port_tx_rings, i));
  for (let i: u32 = 0; i < rx; i++) resume(to, at(port + port_rx_rings, i));
}

export function valeMove(from: usize, to: usize, port: usize): i32 {
  if (load<u32>(port, port_domain) != <u32>from) return -EINVAL;
  if (freeId(to) == NM_BDG_MAXPORTS) return -ENOSPC;
  if (load<u32>(from, domain_num_monitor_rings) + load<u32>(to, domain_num_monitor_rings) > MAX_MONITOR_RINGS)
    return -ENOSPC;
  const tx = load<u32>(port, port_num_tx_rings);
  const rx = load<u32>(port, port_num_rx_rings);
  for (let i: u32 = 0; i < tx; i++) suspend(from, at(port + port_tx_rings, i));
  for (let i: u32 = 0; i < rx; i++) suspend(from, at(port + port_rx_rings, i));
  for (let i: u32 = 0; i < tx; i++) moveMonitors(from, to, at(port + port_tx_rings, i));
  for (let i: u32 = 0; i < rx; i++) moveMonitors(from, to, at(port + port_rx_rings, i));
  removePort(from, port);
  const id = valeAttach(to, port);
  for (let i: u32 = 0; i < tx; i++) resume(to, at(port + port_tx_rings, i));
  for (let i: u32 = 0; i < rx; i++) resume(to, at(port + port_rx_rings, i));
  return id;
}

/** Takes a running ring from its domain's lists; `resume` puts it on another's. */
function suspend(d: usize, kr: usize): void {
  if (load<u32>(kr, kring_state) != KRING_RUNNING) return;
  delist(d, kr);
  store<u32>(kr, KRING_FROZEN, kring_state);
}

function resume(d: usize, kr: usize): void {
  if (load<u32>(kr, kring_state) != KRING_FROZEN) return;
  enlist(d, kr);
  store<u32>(kr, KRING_RUNNING, kring_state);
}

export function krReset(kr: usize): i32 {
  if (load<u32>(kr, kring_state) == KRING_RUNNING) return -EBUSY;
  if (kindOf(kr) == DOMAIN_PIPE) pipeThaw(kr);
  else resetPositions(kr);
  return 0;
}

export function krFreeze(kr: usize): i32 {
  if (load<u32>(kr, kring_state) == KRING_RUNNING) return -EBUSY;
  if (kindOf(kr) == DOMAIN_PIPE) pipeFreeze(kr);
  return 0;
}

function kindOf(kr: usize): u32 {
  return load<u16>(kr, kring_kind);
}

export function krCheck(kr: usize): i32 {
  return csbCheck(kr) ? 0 : -EINVAL;
}

export function krStart(kr: usize): i32 {
  if (load<u32>(kr, kring_state) == KRING_RUNNING) return 0;
  const d = domainOf(kr);
  if (d == 0) return -EINVAL;
  csbStart(kr);
  enlist(d, kr);
  return 0;
}

export function krStop(kr: usize): void {
  if (load<u32>(kr, kring_state) != KRING_RUNNING) return;
  const d = domainOf(kr);
  if (load<u32>(kr, kring_dir) == NR_DIR_TX) txsyncLast(d, kr);
  else syncReceiver(d, kr);
  store<u32>(kr, KRING_STOPPED, kring_state);
  delist(d, kr);
  if (load<u32>(kr, kring_signalled) != 0) dropSignal(d, kr);
}

/** A stopped ring is not signalled any more. */
function dropSignal(d: usize, kr: usize): void {
  store<u32>(kr, 0, kring_signalled);
  let i: u32 = 0;
  while (at(d + domain_signals, i) != kr) i++;
  removeAt(d + domain_num_signals, d + domain_signals, i);
}

export function serve(d: usize): u32 {
  let moved: u32 = releasesMatter(d) ? syncReceivers(d) : 0;
  const nics = load<u32>(d, domain_num_nics);
  if (nics != 0) moved += nicsBefore(d);
  moved += syncSenders(d);
  return nics == 0 ? moved : moved + nicsAfter(d);
}

function syncSenders(d: usize): u32 {
  lookAtParked(d);
  const n = load<u32>(d, domain_num_tx_polled);
  if (n == 0) return 0;
  let i = load<u32>(d, domain_turn);
  if (i >= n) i = 0;
  store<u32>(d, i + 1, domain_turn);
  let moved: u32 = 0;
  let idle: usize = 0;
  for (let left = n; left != 0; left--) {
    const kr = at(d + domain_tx_running, i);
    const slots = txsync(d, kr);
    moved += slots;
    if (isIdle(d, kr, slots)) idle = kr;
    i = i + 1 == n ? 0 : i + 1;
  }
  if (idle != 0) park(d, idle);
  return moved;
}

/** Sends what the application of a running tx ring wants sent: at most a batch (R8). Returns the slots. */
function txsync(d: usize, kr: usize): u32 {
  const kind = kindOf(kr);
  if (kind == DOMAIN_PIPE) return pipeTxsync(d, kr);
  if (kind == DOMAIN_NULL) return nullTxsync(d, kr);
  if (kind == DOMAIN_NIC) return nicTxsync(d, kr);
  // Nothing can be sent through a monitor.
  if (kind != DOMAIN_VALE) return sinkTxsync(d, kr, kring_drop_nodst);
  if (!txsyncPrologue(kr)) return 0;
  setArmed(kr, 0);
  return valeTxsync(d, kr);
}

/** Sends what the application wants sent now: all of it, but no more than the ring holds. */
function txsyncLast(d: usize, kr: usize): void {
  const n = load<u32>(kr, kring_num_slots);
  let done: u32 = 0;
  while (done < n) {
    const moved = txsync(d, kr);
    if (moved == 0) return;
    done += moved;
  }
}

/** Takes back what the application of a running rx ring released. Returns the slots, where that is work for others. */
function syncReceiver(d: usize, kr: usize): u32 {
  const kind = kindOf(kr);
  if (kind == DOMAIN_PIPE) return pipeRxsync(d, kr);
  if (kind == DOMAIN_NULL) return nullRxsync(d, kr);
  if (kind == DOMAIN_NIC) return nicRxsync(d, kr);
  const hwcur = load<u32>(kr, kring_hwcur);
  rxsync(kr);
  publish(d, kr);
  return load<u32>(kr, kring_zmon) != 0 && load<u32>(kr, kring_hwcur) != hwcur ? 1 : 0;
}

/**
 * Whether releases are work of their own. A switch's receivers are asked when something is delivered, unless a monitor may
 * wait for what they release.
 */
function releasesMatter(d: usize): bool {
  return load<u32>(d, domain_kind) != DOMAIN_VALE || load<u32>(d, domain_num_monitor_rings) != 0;
}

function syncReceivers(d: usize): u32 {
  const n = load<u32>(d, domain_num_rx_running);
  let moved: u32 = 0;
  for (let i: u32 = 0; i < n; i++) moved += syncReceiver(d, at(d + domain_rx_running, i));
  return moved;
}

export function arm(d: usize): void {
  syncReceivers(d);
  const tx = load<u32>(d, domain_num_tx_running);
  for (let i: u32 = 0; i < tx; i++) setArmed(at(d + domain_tx_running, i), 1);
  if (!releasesMatter(d)) return;
  const rx = load<u32>(d, domain_num_rx_running);
  for (let i: u32 = 0; i < rx; i++) {
    const kr = at(d + domain_rx_running, i);
    const kind = kindOf(kr);
    if (kind == DOMAIN_PIPE) pipeArmReceiver(kr);
    else if (kind == DOMAIN_NIC) nicArmReceiver(kr);
    else if (kind == DOMAIN_NULL || load<u32>(kr, kring_zmon) != 0) setArmed(kr, 1);
  }
}

export function look(d: usize): u32 {
  let ready: u32 = nicsReady(d);
  const tx = load<u32>(d, domain_num_tx_running);
  for (let i: u32 = 0; i < tx; i++) {
    const kr = at(d + domain_tx_running, i);
    if (!senderReady(kr)) continue;
    ready++;
    if (i >= load<u32>(d, domain_num_tx_polled)) unpark(d, kr);
  }
  if (!releasesMatter(d)) return ready;
  const rx = load<u32>(d, domain_num_rx_running);
  for (let i: u32 = 0; i < rx; i++) if (receiverReady(at(d + domain_rx_running, i))) ready++;
  return ready;
}

/** Whether syncing a running tx ring would find something. */
function senderReady(kr: usize): bool {
  const kind = kindOf(kr);
  if (kind == DOMAIN_NIC) return nicTxReady(kr);
  return txReady(kr) && (kind != DOMAIN_PIPE || pipeTxOpen(kr));
}

/** Whether syncing a running rx ring would find something that matters (`releasesMatter`). */
function receiverReady(kr: usize): bool {
  const kind = kindOf(kr);
  if (kind == DOMAIN_PIPE) return pipeRxReady(kr);
  if (kind == DOMAIN_NIC) return nicRxReady(kr);
  return (kind == DOMAIN_NULL || load<u32>(kr, kring_zmon) != 0) && rxReady(kr);
}
