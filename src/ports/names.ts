/** Port names, as netmap spells them (netmap(4), vale(4)). */

/** A port of a VALE switch: `valeSSS:PPP`. */
export interface ValeName {
  readonly kind: 'vale';
  readonly name: string;
  /** "valeSSS" */
  readonly bridge: string;
  /** "PPP" */
  readonly port: string;
}

/** A name that is none; the message shows where. */
export class PortNameError extends Error {
  constructor(name: string, at: number, why: string) {
    super(`port name "${name}": ${why}\n  ${name}\n  ${' '.repeat(at)}^`);
    this.name = 'PortNameError';
  }
}

/** Longest name (NETMAP_REQ_IFNAMSIZ less its NUL). */
const MAX_NAME = 63;

/**
 * Parses a port name. @throws PortNameError that points at the character
 */
export function parsePortName(name: string): ValeName {
  if (name.length > MAX_NAME) throw new PortNameError(name, MAX_NAME, `longer than ${MAX_NAME} characters`);
  if (!name.startsWith('vale')) {
    throw new PortNameError(name, 0, 'ports are named valeSSS:PPP (a port PPP of the VALE switch valeSSS)');
  }
  const colon = name.indexOf(':');
  const bridgeEnd = colon < 0 ? name.length : colon;
  for (let i = 4; i < bridgeEnd; i++) {
    if (!/[A-Za-z0-9_]/.test(name[i]!))
      throw new PortNameError(name, i, 'a switch name has letters, digits and _ only');
  }
  if (colon < 0) throw new PortNameError(name, name.length, 'a ":" and the name of a port are missing');
  if (colon + 1 === name.length) throw new PortNameError(name, name.length, 'the name of the port is missing');
  for (let i = colon + 1; i < name.length; i++) {
    if (!/[A-Za-z0-9_.-]/.test(name[i]!)) {
      throw new PortNameError(name, i, 'a port name has letters, digits, "_", "." and "-" only');
    }
  }
  return { kind: 'vale', name, bridge: name.slice(0, colon), port: name.slice(colon + 1) };
}
