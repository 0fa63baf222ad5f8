"""Trees of sysfs and procfs as boards show them: written from what each board's files hold, shortened."""

from __future__ import annotations

import os
from pathlib import Path

MEMINFO = "MemTotal: {total} kB\nMemFree: 1000 kB\nMemAvailable: {free} kB\nSwapTotal: {swap} kB\nSwapFree: {swap} kB\n"

ORIN = {
    "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
    "proc/device-tree/compatible": "nvidia,p3737-0000+p3701-0000\0nvidia,p3701-0000\0nvidia,tegra234\0",
    "proc/cpuinfo": "processor\t: 0\nBogoMIPS\t: 62.50\nFeatures\t: fp asimd asimdhp asimddp crc32\n\nprocessor\t: 1\n",
    "proc/meminfo": MEMINFO.format(total=31_328_000, free=28_000_000, swap=15_664_000),
    "sys/devices/platform/bus@0/17000000.gpu/load": "437\n",
    "var/lib/nvpmodel/status": "pmode:0002\n",
    "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=1 NAME=MODE_15W >\n"
    "< POWER_MODEL ID=2 NAME=MODE_30W >\n< PM_CONFIG DEFAULT=2 >\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "schedutil\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "1190400\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq": "1728000\n",
    "sys/devices/system/cpu/cpufreq/policy0/cpuinfo_max_freq": "2201600\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "48312\n",
    "sys/class/thermal/thermal_zone0/trip_point_0_type": "critical\n",
    "sys/class/thermal/thermal_zone0/trip_point_0_temp": "104500\n",
    "sys/class/thermal/thermal_zone0/trip_point_1_type": "passive\n",
    "sys/class/thermal/thermal_zone0/trip_point_1_temp": "99000\n",
    "sys/class/thermal/thermal_zone1/type": "cv0-thermal\n",  # switched off: no temp can be read
    "sys/class/thermal/thermal_zone2/type": "tj-thermal\n",
    "sys/class/thermal/thermal_zone2/temp": "51000\n",
    "sys/class/thermal/cooling_device0/type": "cpu-throttle-alert\n",
    "sys/class/thermal/cooling_device0/cur_state": "1\n",
    "sys/class/thermal/cooling_device1/type": "pwm-fan\n",
    "sys/class/thermal/cooling_device1/cur_state": "2\n",
    "sys/class/hwmon/hwmon0/name": "pwm_tach\n",
    "sys/class/hwmon/hwmon0/rpm": "2143\n",
    "sys/class/hwmon/hwmon1/name": "soctherm_oc\n",
    "sys/class/hwmon/hwmon1/oc3_throt_en": "1\n",
    "sys/class/hwmon/hwmon1/oc3_event_cnt": "7\n",
    "sys/class/hwmon/hwmon2/name": "pwmfan\n",
    "sys/class/hwmon/hwmon2/pwm1": "102\n",
    "sys/class/hwmon/hwmon3/name": "ina3221\n",
    "sys/class/hwmon/hwmon3/in1_label": "VDD_GPU_SOC\n",
    "sys/class/hwmon/hwmon3/in1_input": "19136\n",
    "sys/class/hwmon/hwmon3/curr1_input": "208\n",
    "sys/class/hwmon/hwmon3/in3_label": "VIN_SYS_5V0\n",
    "sys/class/hwmon/hwmon3/in3_input": "5000\n",
    "sys/class/hwmon/hwmon3/curr3_input": "1000\n",
    "sys/block/mmcblk0/device/life_time": "0x01 0x02\n",
}  # fmt: skip

XAVIER = {
    "proc/device-tree/model": "Jetson-AGX\0",
    "proc/device-tree/compatible": "nvidia,jetson-xavier\0nvidia,tegra194\0",
    "sys/devices/17000000.gv11b/load": "0\n",
    "var/lib/nvpmodel/status": "pmode:0000\n",
    "sys/class/thermal/thermal_zone0/type": "CPU-therm\n",
    "sys/class/thermal/thermal_zone0/temp": "36500\n",
    "sys/class/thermal/thermal_zone1/type": "PMIC-Die\n",
    "sys/class/thermal/thermal_zone1/temp": "-256000000\n",
    "sys/bus/i2c/drivers/ina3221x/1-0040/iio:device0/rail_name_0": "GPU\n",
    "sys/bus/i2c/drivers/ina3221x/1-0040/iio:device0/in_power0_input": "155\n",
    "sys/bus/i2c/drivers/ina3221x/1-0041/iio:device1/rail_name_1": "VDD_IN\n",
    "sys/bus/i2c/drivers/ina3221x/1-0041/iio:device1/in_power1_input": "6840\n",
}

PI = {
    "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
    "proc/device-tree/compatible": "raspberrypi,4-model-b\0brcm,bcm2711\0",
    "proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd evtstrm crc32 cpuid\n\nModel\t\t: Raspberry Pi 4\n",
    "proc/meminfo": MEMINFO.format(total=3_884_000, free=200_000, swap=0),
    "sys/devices/platform/soc/soc:firmware/get_throttled": "50005\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "ondemand\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "600000\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq": "1500000\n",
    "sys/devices/system/cpu/cpufreq/policy0/cpuinfo_max_freq": "1500000\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "84226\n",
    "sys/class/thermal/thermal_zone0/trip_point_0_type": "critical\n",
    "sys/class/thermal/thermal_zone0/trip_point_0_temp": "90000\n",
}

X86 = {
    "sys/class/dmi/id/product_name": "NUC11TNHi5\n",
    "proc/cpuinfo": "processor\t: 0\nmodel name\t: 11th Gen Intel(R) Core(TM) i5-1135G7\n"
    "flags\t\t: fpu sse avx2 avx512_vnni\n\n",
    "proc/meminfo": MEMINFO.format(total=16_000_000, free=9_000_000, swap=2_000_000),
    "sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "powersave\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "800000\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq": "4200000\n",
    "sys/devices/system/cpu/cpufreq/policy0/cpuinfo_max_freq": "4200000\n",
    "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "3\n",
    "sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count": "4\n",
    "sys/class/thermal/thermal_zone0/type": "x86_pkg_temp\n",
    "sys/class/thermal/thermal_zone0/temp": "55000\n",
    "sys/class/thermal/thermal_zone0/trip_point_0_type": "passive\n",
    "sys/class/thermal/thermal_zone0/trip_point_0_temp": "-274000\n",
    "sys/class/thermal/cooling_device0/type": "Processor\n",
    "sys/class/thermal/cooling_device0/cur_state": "0\n",
    "sys/class/hwmon/hwmon1/name": "nct6775\n",
    "sys/class/hwmon/hwmon1/fan1_input": "0\n",
    "sys/class/hwmon/hwmon1/fan2_input": "1170\n",
}


def plant(root: Path, files: dict[str, str]) -> Path:
    """Write the files below `root`, which is returned."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, "utf-8")
    return root


def hostile(root: Path) -> Path:
    """Every file that a look reads, as something else: huge, binary, a pipe, a folder, a loop, a number too long."""
    kinds = ("huge", "binary", "pipe", "folder", "loop", "long")
    for number, name in enumerate({**ORIN, **XAVIER, **PI, **X86}):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        match kinds[number % len(kinds)]:
            case "huge":
                with path.open("wb") as file:
                    file.truncate(1 << 32)
            case "binary":
                path.write_bytes(bytes(range(256)) * 40)
            case "pipe":
                os.mkfifo(path)
            case "folder":
                path.mkdir()
            case "loop":
                path.symlink_to(path.name)
            case "long":
                path.write_text("9" * 5000)
    return root
