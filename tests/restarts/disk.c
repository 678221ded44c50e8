/* Makes the disk slow or bad for a program, by LD_PRELOAD.
 *
 * The file that $DISK names holds "CALLS MILLISECONDS ERRNO": calls of these kinds (s: fsync and
 * fdatasync, w: writes, o: opens for writing, r: renames) on files below $DISK_BELOW wait so long,
 * and fail with the error if it is not 0. The file is read at each call; if it is missing, nothing
 * is changed.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static int is_below(const char *path)
{
    const char *below = getenv("DISK_BELOW");
    return below && strncmp(path, below, strlen(below)) == 0;
}

/* Whether the call must fail; errno is set then. */
static int spoil(char kind, const char *path)
{
    const char *name = getenv("DISK");
    if (!name || !is_below(path))
        return 0;
    FILE *file = fopen(name, "re");
    if (!file)
        return 0;
    char kinds[16] = "";
    int wait = 0, error = 0;
    int count = fscanf(file, "%15s %d %d", kinds, &wait, &error);
    fclose(file);
    if (count != 3 || !strchr(kinds, kind))
        return 0;
    struct timespec time = {wait / 1000, wait % 1000 * 1000000L};
    nanosleep(&time, NULL);
    errno = error;
    return error != 0;
}

static int spoil_fd(char kind, int fd)
{
    char link[64], path[PATH_MAX + 1];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX);
    if (length < 0)
        return 0;
    path[length] = 0;
    return spoil(kind, path);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int fsync(int fd) { return spoil_fd('s', fd) ? -1 : NEXT(fsync)(fd); }
int fdatasync(int fd) { return spoil_fd('s', fd) ? -1 : NEXT(fdatasync)(fd); }


ssize_t write(int fd, const void *data, size_t size) { return spoil_fd('w', fd) ? -1 : NEXT(write)(fd, data, size); }
ssize_t writev(int fd, const struct iovec *parts, int count) { return spoil_fd('w', fd) ? -1 : NEXT(writev)(fd, parts, count); }
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) { return spoil_fd('w', fd) ? -1 : NEXT(pwrite64)(fd, data, size, at); }

int open64(const char *path, int flags, ...)
{
    va_list rest;
    va_start(rest, flags);
    int mode = va_arg(rest, int);
    va_end(rest);
    if (flags & (O_WRONLY | O_RDWR | O_CREAT) && spoil('o', path))
        return -1;
    return NEXT(open64)(path, flags, mode);
}

int rename(const char *from, const char *to) { return spoil('r', to) ? -1 : NEXT(rename)(from, to); }
