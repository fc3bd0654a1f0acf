/** Which interfaces the default routes of this thread's network namespace go through (rtnetlink(7), linux/rtnetlink.h). */
import { netlinkAttributes, netlinkDump } from './netlink.ts';

const RTM_NEWLINK = 16;
const RTM_GETLINK = 18;
const RTM_NEWROUTE = 24;
const RTM_GETROUTE = 26;
/** struct ifinfomsg, struct rtmsg, struct rtnexthop */
const IFINFOMSG = 16;
const RTMSG = 12;
const RTNEXTHOP = 8;
const RTA_OIF = 4;
const RTA_MULTIPATH = 9;
const RTN_UNICAST = 1;
const IFLA_IFNAME = 3;
const IFLA_LINK = 5;
const IFLA_MASTER = 10;
const IFLA_LINK_NETNSID = 37;

interface Link {
  readonly name: string;
  /** The bridge or bond that it is a port of; 0: none. */
  readonly master: number;
  /** The interface that it lies on (VLAN, macvlan), or that its cable leads to (veth), if that is in this namespace. */
  readonly link: number;
}

function links(): Map<number, Link> {
  const found = new Map<number, Link>();
  netlinkDump(RTM_GETLINK, IFINFOMSG, (view, { type, at, end }) => {
    if (type !== RTM_NEWLINK) return;
    let [name, master, link, elsewhere] = ['', 0, 0, false];
    for (const a of netlinkAttributes(view, at + IFINFOMSG, end)) {
      if (a.type === IFLA_IFNAME) name = new TextDecoder().decode(new Uint8Array(view.buffer, a.at, a.end - a.at - 1));
      else if (a.type === IFLA_MASTER) master = view.getUint32(a.at, true);
      else if (a.type === IFLA_LINK) link = view.getUint32(a.at, true);
      else if (a.type === IFLA_LINK_NETNSID) elsewhere = true;
    }
    found.set(view.getInt32(at + 4, true), { name, master, link: elsewhere ? 0 : link });
  });
  return found;
}

/** Indexes of the interfaces of default routes, IPv4 and IPv6, of all tables. */
function routed(): Set<number> {
  const found = new Set<number>();
  netlinkDump(RTM_GETROUTE, RTMSG, (view, { type, at, end }) => {
    // struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type: u8
    if (type !== RTM_NEWROUTE || view.getUint8(at + 1) !== 0 || view.getUint8(at + 7) !== RTN_UNICAST) return;
    for (const a of netlinkAttributes(view, at + RTMSG, end)) {
      if (a.type === RTA_OIF) found.add(view.getUint32(a.at, true));
      // struct rtnexthop: len u16, flags u8, hops u8, ifindex i32
      for (let p = a.at; a.type === RTA_MULTIPATH && p + RTNEXTHOP <= a.end; ) {
        found.add(view.getInt32(p + 4, true));
        p += Math.max(RTNEXTHOP, (view.getUint16(p, true) + 3) & ~3);
      }
    }
  });
  return found;
}

/**
 * The interface of a default route that frames of interface `ifindex` are for: itself; or the bridge, bond, VLAN, … above
 * it; or, for one end of a veth pair, the other. Undefined if none is.
 */
export function carriesDefaultRoute(ifindex: number): string | undefined {
  const all = links();
  for (const start of routed()) {
    const below = new Set([start]);
    for (const i of below) {
      const link = all.get(i)?.link ?? 0;
      if (link !== 0) below.add(link);
      for (const [j, { master }] of all) if (master === i) below.add(j);
    }
    if (below.has(ifindex)) return all.get(start)?.name ?? `interface ${start}`;
  }
  return undefined;
}
