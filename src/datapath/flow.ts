/**
 * The flow of a packet as a number: which of a receiver's rings it goes to when its sender has one ring only
 * (docs/vale.md). Equal for all packets of a flow and for both directions of it. Of the headers, each word is read once
 * (R5); whatever a peer puts there meanwhile makes another number, and no more.
 */
import { loadFrame16, loadFrame32, loadFrame64, loadFrame8, loadHeader } from './peer';

const ETH_HLEN: u32 = 14;
/** Words of a frame as they lie in memory: bytes swapped. */
const VLAN: u32 = 0x0081;
const IPV4: u32 = 0x0008;
const IPV6: u32 = 0xdd86;
/** More fragments, fragment offset. */
const IPV4_FRAGMENT: u32 = 0xff3f;
const TCP: u32 = 6;
const UDP: u32 = 17;
/** 2^64 / golden ratio */
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/** A ring, 0 .. rings - 1, for the frame at `eth`, of which `len` bytes are there, at least an Ethernet header. */
export function flowRing(eth: usize, len: u32, rings: u32): u32 {
  return <u32>(((flow(eth, len) >> 32) * rings) >> 32);
}

function flow(eth: usize, len: u32): u64 {
  const header = loadHeader(eth);
  const lo = i64x2.extract_lane(header, 0);
  const hi = i64x2.extract_lane(header, 1);
  const dmac = lo & 0xffff_ffff_ffff;
  const smac = (lo >>> 48) | ((hi & 0xffff_ffff) << 16);
  let type = <u32>(hi >>> 32) & 0xffff;
  let h = mix(dmac ^ smac);
  let l3 = ETH_HLEN;
  if (type == VLAN && len >= ETH_HLEN + 4) {
    type = loadFrame16(eth + 16);
    l3 += 4;
  }
  const ip = eth + l3;
  let proto: u32 = 0;
  let l4: u32 = 0;
  if (type == IPV4 && len >= l3 + 20) {
    h = mix(h ^ (loadFrame32(ip + 12) ^ loadFrame32(ip + 16)));
    proto = loadFrame8(ip + 9);
    if ((loadFrame16(ip + 6) & IPV4_FRAGMENT) == 0) l4 = l3 + ((loadFrame8(ip) & 15) << 2);
  } else if (type == IPV6 && len >= l3 + 40) {
    h = mix(h ^ (loadFrame64(ip + 8) ^ loadFrame64(ip + 24)));
    h = mix(h ^ (loadFrame64(ip + 16) ^ loadFrame64(ip + 32)));
    proto = loadFrame8(ip + 6);
    l4 = l3 + 40;
  } else return h;
  if (l4 == 0 || (proto != TCP && proto != UDP) || len < l4 + 4) return mix(h ^ proto);
  const ports = loadFrame32(eth + l4);
  return mix(h ^ proto ^ (((ports ^ (ports >> 16)) & 0xffff) << 8));
}

function mix(h: u64): u64 {
  const m = h * MULTIPLIER;
  return m ^ (m >> 29);
}
