/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * Answers uname(2) as a Mac does. Preloaded into every program of a sandbox Mac.
 * The answer is in a small file (sysname, release, version, machine, a line each), written by launchd at boot.
 * LMFLEET_SANDBOX_UNAME=real switches it off, for programs that must know what they really run on.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

static const char answers[] = "/private/var/db/lmfleet-sandbox/uname";

static const char *take_line(const char *from, char *field, size_t size)
{
    size_t length = strcspn(from, "\n");
    size_t kept = length < size - 1 ? length : size - 1;

    memset(field, 0, size);
    memcpy(field, from, kept);
    return from[length] ? from + length + 1 : from + length;
}

__attribute__((visibility("default"))) int uname(struct utsname *name)
{
    char text[1024];
    const char *wanted = getenv("LMFLEET_SANDBOX_UNAME");
    const char *rest = text;
    ssize_t length;
    int file;

    if (syscall(SYS_uname, name) != 0)
        return -1;
    if (wanted && strcmp(wanted, "real") == 0)
        return 0;
    file = open(answers, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return 0;
    length = read(file, text, sizeof text - 1);
    close(file);
    if (length <= 0)
        return 0;
    text[length] = '\0';
    rest = take_line(rest, name->sysname, sizeof name->sysname);
    rest = take_line(rest, name->release, sizeof name->release);
    rest = take_line(rest, name->version, sizeof name->version);
    take_line(rest, name->machine, sizeof name->machine);
    return 0;
}
