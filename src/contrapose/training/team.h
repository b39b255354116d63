/* Work on several threads: a function that takes piece after piece until none is left. */

#include <pthread.h>
#include <stdint.h>

/* A function on as many threads of OpenMP, as its library starts them; see threads.py */
typedef void (*Team)(void (*)(void *), void *, unsigned threads, unsigned flags);

typedef struct {
    void *(*pieces)(void *);
    void *of;
} Shared;

static void of_a_team(void *shared) {
    const Shared *s = shared;
    s->pieces(s->of);
}

/* On `threads` threads, this one among them: of the team if there is one, else new ones. */
static void share(void *(*pieces)(void *), void *of, int32_t threads, Team team) {
    Shared s = {pieces, of};
    if (team && threads > 1) {
        team(of_a_team, &s, threads, 0);
        return;
    }
    pthread_t other[threads + 1];
    int started = 0;
    while (started < threads - 1 && !pthread_create(other + started, 0, pieces, of)) started++;
    pieces(of);
    for (int i = 0; i < started; i++) pthread_join(other[i], 0);
}
