/* Runs net.c on every image of images.h on a bare Cortex-M and prints, by semihosting, a line for each: the ticks that it
 * took and the bits of its outputs. The first line is the ticks of a loop of two million instructions. */

#include "images.h"
#include "net.h"

#define COUNTER ((volatile uint32_t *)0xe000e010) /* SysTick: control, reload, value */

extern uint32_t bss_begin[], bss_end[];
extern char stack_top[];
void reset(void);

__attribute__((section(".vectors"), used)) static void (*const vectors[])(void) = {
    (void (*)(void))stack_top, reset, reset, reset}; /* a fault begins anew and never ends */

static void semihosting(int operation, const void *argument)
{
  register int r0 __asm__("r0") = operation;
  register const void *r1 __asm__("r1") = argument;
  __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
}

static void print(uint32_t value, char end)
{
  char text[10];
  for (int i = 0; i < 8; i++)
    text[i] = "0123456789abcdef"[(value >> (28 - 4 * i)) & 15];
  text[8] = end;
  text[9] = 0;
  semihosting(4, text);
}

static uint32_t ticks(void)
{
  return COUNTER[2]; /* counts down */
}

void reset(void)
{
  static float outputs[NET_OUTPUTS];
  for (uint32_t *word = bss_begin; word < bss_end; word++)
    *word = 0;
  *(volatile uint32_t *)0xe000ed88 |= 0xf << 20; /* the floating-point unit on */
  __asm__ volatile("dsb\nisb");
  COUNTER[1] = 0xffffff;
  COUNTER[2] = 0;
  COUNTER[0] = 5; /* on, without interrupts, at the processor's clock */
  uint32_t begin = ticks(), loop = 1000000;
  __asm__ volatile("1: subs %0, #1\nbne 1b" : "+r"(loop) : : "cc");
  print((begin - ticks()) & 0xffffff, '\n');
  for (int n = 0; n < IMAGES; n++) {
    begin = ticks();
    net_run(images[n], outputs);
    print((begin - ticks()) & 0xffffff, ' ');
    for (int i = 0; i < NET_OUTPUTS; i++) {
      uint32_t bits;
      __builtin_memcpy(&bits, &outputs[i], 4);
      print(bits, ' ');
    }
    semihosting(4, "\n");
  }
  semihosting(0x18, (const void *)0x20026); /* the end */
  for (;;)
    ;
}
