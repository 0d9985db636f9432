"""Addresses by which a webhook could be made to call what it must not: the corpus of acceptance test 13."""

from __future__ import annotations

#: Addresses that are no public host's, whatever `ipaddress.is_global` says of some of them.
ADDRESSES = (
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.127.255.254", "127.0.0.1", "127.8.8.8",
    "169.254.0.1", "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.8", "192.0.0.170", "192.0.2.1",
    "192.88.99.1", "192.168.0.1", "198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1",
    "239.255.255.255", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::127.0.0.1", "::a9fe:a9fe", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254",
    "::ffff:0:127.0.0.1", "64:ff9b::127.0.0.1", "64:ff9b::169.254.169.254", "64:ff9b:1::1", "64:ff9b:1::a00:1",
    "100::1", "2001::1", "2001:0:a9fe:a9fe::1", "2001:10::1", "2001:db8::1", "2002:7f00:1::", "2002:a9fe:a9fe::",
    "2002:c0a8:1::1", "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fe80::1", "febf::1", "fec0::1", "feff::1",
    "ff02::1", "ff0e::1",
)  # fmt: skip

#: Whole addresses: those above, and ways to write or hide them.
URLS = (
    *(f"https://[{one}]/" if ":" in one else f"https://{one}/" for one in ADDRESSES),
    # other ways to write an IPv4 address
    "https://2130706433/", "https://0x7f000001/", "https://017700000001/", "https://0x7f.0x0.0x0.0x1/",
    "https://0177.0.0.1/", "https://127.1/", "https://127.0.1/", "https://0/", "https://0x0/", "https://127.0.0.1./",
    "https://2852039166/", "https://0xA9FEA9FE/", "https://169.254.43518/", "https://0251.0376.0251.0376/",
    "https://①②⑦.⓪.⓪.①/", "https://127。0。0。1/",
    # names that are looked up to such addresses
    "https://localhost/", "https://localhost./", "https://LOCALHOST:8000/", "https://ip6-localhost/",
    # what one reader takes for the host and another for the user
    "https://example.org@127.0.0.1/", "https://127.0.0.1@example.org/", "https://user:pass@example.org/",
    "https://example.org\\@127.0.0.1/", "https://127.0.0.1\\example.org/", "https://example.org#@127.0.0.1/",
    "https://127.0.0.1%2f@example.org/", "https://127.0.0.1%00.example.org/", "https://[::1%25lo]/",
    "https://[fe80::1%eth0]/", "https://[::ffff:7f00:1]:8000/", "https://example.org:80:443/", "https://[::1]x/",
    # other schemes
    "http://127.0.0.1/", "http://169.254.169.254/latest/meta-data/", "http://example.org/", "ftp://127.0.0.1/",
    "file:///etc/passwd", "gopher://127.0.0.1:6379/_FLUSHALL", "dict://127.0.0.1:6379/info", "//127.0.0.1/",
    "https:/127.0.0.1/", "https:127.0.0.1", "javascript:alert(1)", "unix:/run/redis.sock",
    # what would break out of the request
    "https://example.org/\r\nHost: 127.0.0.1", "https://example.org/ HTTP/1.1\r\n\r\n", "https://example.org\t/",
    " https://127.0.0.1/", "https://example.org:0/", "https://example.org:99999/", "https:///", "https://", "",
)  # fmt: skip
