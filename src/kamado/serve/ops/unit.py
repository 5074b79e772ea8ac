"""Unit files that start the server with the user's session, as the user: a system service would not see the models."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

_SYSTEMD = """\
# {advice}
[Unit]
Description=Kamado model server
After=network.target

[Service]
{environment}ExecStart={command}
# Reads the settings again.
ExecReload=/bin/kill -HUP $MAINPID
Restart=on-failure
RestartSec=2
# SIGTERM drains: running answers may end first.
TimeoutStopSec=45
NoNewPrivileges=yes
PrivateTmp=yes
ProtectSystem=strict
ReadWritePaths=%h{writable}
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
LockPersonality=yes
RestrictSUIDSGID=yes

[Install]
WantedBy=default.target
"""

_LAUNCHD = """\
<?xml version="1.0" encoding="UTF-8"?>
<!-- {advice} -->
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
<dict>
  <key>Label</key><string>kamado.serve</string>
  <key>ProgramArguments</key>
  <array>
{words}
  </array>
{environment}  <key>RunAtLoad</key><true/>
  <key>KeepAlive</key><dict><key>SuccessfulExit</key><false/></dict>
  <key>ExitTimeOut</key><integer>45</integer>
</dict>
</plist>
"""


def unit_text(
    arguments: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    platform: str = sys.platform,
    program: str | None = None,
) -> str:
    """A unit for this system that runs `kamado serve` with `arguments` and these variables.

    It holds no API key: the key file does. A folder in KAMADO_HOME may be written to.
    """
    variables = dict(environment or {})
    words = [program or shutil.which("kamado") or str(Path(sys.argv[0]).absolute()), "serve", *arguments]
    if platform == "darwin":
        advice = "put it into ~/Library/LaunchAgents/kamado.serve.plist; launchctl load -w that file"
        items = "\n".join(f"    <string>{escape(word)}</string>" for word in words)
        pairs = "".join(
            f"    <key>{escape(name)}</key><string>{escape(value)}</string>\n" for name, value in variables.items()
        )
        known = f"  <key>EnvironmentVariables</key>\n  <dict>\n{pairs}  </dict>\n" if pairs else ""
        return _LAUNCHD.format(advice=advice, words=items, environment=known)
    advice = "put it into ~/.config/systemd/user/kamado.service; systemctl --user enable --now kamado"
    home = variables.get("KAMADO_HOME")
    return _SYSTEMD.format(
        advice=advice,
        command=" ".join(_quoted(word) for word in words),
        environment="".join(f"Environment={_assignment(name, value)}\n" for name, value in variables.items()),
        writable="" if home is None else f" {_escaped(home, ' ')}",
    )


def _assignment(name: str, value: str) -> str:
    plain = f"{name}={value}".replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{plain}"'


def _escaped(path: str, characters: str) -> str:
    """A path of a list: what parts the list is written in hexadecimal."""
    plain = path.replace("\\", "\\x5c").replace("%", "%%")
    for character in characters:
        plain = plain.replace(character, f"\\x{ord(character):02x}")
    return plain


def _quoted(word: str) -> str:
    """A word of ExecStart: quoted, and % and $ made plain."""
    plain = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{plain}"' if not plain or any(c in plain for c in " \t'\";#\\") else plain
